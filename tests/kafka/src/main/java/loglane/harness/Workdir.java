package loglane.harness;

import org.apache.kafka.clients.admin.Admin;

import java.io.IOException;
import java.io.Reader;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Properties;

/** One broker's directory: server.properties, ports, data/, metadata/, broker.log, pid. */
record Workdir(Path path) {
    static Workdir at(String path) {
        return new Workdir(Path.of(path).toAbsolutePath().normalize());
    }

    /** Where the broker listens. */
    String bootstrap() throws IOException {
        Path ports = path.resolve("ports");
        if (!Files.exists(ports))
            throw new IllegalArgumentException(path + " has no ports file: run `format` first");
        Properties properties = new Properties();
        try (Reader reader = Files.newBufferedReader(ports)) {
            properties.load(reader);
        }
        return "127.0.0.1:" + properties.getProperty("broker");
    }

    /** What every client of this broker needs; short waits, so that a broker that is gone fails a test soon. */
    Map<String, Object> clientConfig() throws IOException {
        Map<String, Object> config = new HashMap<>();
        config.put("bootstrap.servers", bootstrap());
        config.put("request.timeout.ms", 20_000);
        config.put("default.api.timeout.ms", 60_000);
        return config;
    }

    Admin admin() throws IOException {
        return Admin.create(clientConfig());
    }

    /** `key=value` words as a map. */
    static Map<String, String> pairs(List<String> words) {
        Map<String, String> map = new HashMap<>();
        for (String word : words) {
            int equals = word.indexOf('=');
            if (equals <= 0)
                throw new IllegalArgumentException("not key=value: " + word);
            map.put(word.substring(0, equals), word.substring(equals + 1));
        }
        return map;
    }
}
