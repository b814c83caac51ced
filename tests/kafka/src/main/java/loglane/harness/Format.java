package loglane.harness;

import kafka.tools.StorageTool;

import org.apache.kafka.common.Uuid;

import java.io.IOException;
import java.net.InetAddress;
import java.net.ServerSocket;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.ThreadLocalRandom;
import java.util.stream.Collectors;

/** `format`: server.properties for one loopback node that is broker and controller, and Kafka's own storage format. */
final class Format {
    private Format() { }

    /** Below the range the kernel gives to outgoing connections, so that nothing takes a port between two starts. */
    private static final int PORT_MIN = 15_000;
    private static final int PORT_MAX = 32_000;
    private static final int PORT_TRIES = 200;

    static void run(Workdir workdir, List<String> overrides) throws Exception {
        Path path = workdir.path();
        Files.createDirectories(path);
        int broker = freePort(-1);
        int controller = freePort(broker);

        Map<String, String> properties = new LinkedHashMap<>();
        properties.put("process.roles", "broker,controller");
        properties.put("node.id", "1");
        properties.put("listeners", "PLAINTEXT://127.0.0.1:" + broker + ",CONTROLLER://127.0.0.1:" + controller);
        properties.put("advertised.listeners", "PLAINTEXT://127.0.0.1:" + broker);
        properties.put("controller.listener.names", "CONTROLLER");
        properties.put("controller.quorum.voters", "1@127.0.0.1:" + controller);
        properties.put("log.dirs", path.resolve("data").toString());
        // Apart, so that data/ holds topic partitions and Kafka's own checkpoints and nothing else.
        properties.put("metadata.log.dir", path.resolve("metadata").toString());
        properties.put("auto.create.topics.enable", "false");
        properties.put("offsets.topic.replication.factor", "1");
        properties.put("offsets.topic.num.partitions", "1");
        properties.put("transaction.state.log.replication.factor", "1");
        properties.put("transaction.state.log.min.isr", "1");
        properties.put("transaction.state.log.num.partitions", "1");
        properties.put("share.coordinator.state.topic.replication.factor", "1");
        properties.put("share.coordinator.state.topic.min.isr", "1");
        properties.put("share.coordinator.state.topic.num.partitions", "1");
        properties.put("group.initial.rebalance.delay.ms", "0");
        // Records carry timestamps of our choice: by default they would be past retention at once.
        properties.put("log.retention.ms", "-1");
        // 128 MiB by default, allocated at start.
        properties.put("log.cleaner.dedupe.buffer.size", "8388608");
        // After kill -9 a new start must wait until the old session ends; 9 s by default.
        properties.put("broker.session.timeout.ms", "3000");
        properties.put("broker.heartbeat.interval.ms", "500");
        properties.put("num.network.threads", "2");
        properties.put("num.io.threads", "4");
        properties.putAll(Workdir.pairs(overrides));

        Files.writeString(path.resolve("server.properties"), properties.entrySet().stream()
            .map(entry -> entry.getKey() + "=" + entry.getValue() + "\n").collect(Collectors.joining()));
        Files.writeString(path.resolve("ports"), "broker=" + broker + "\ncontroller=" + controller + "\n");

        String[] args = {"format", "--cluster-id", Uuid.randomUuid().toString(),
            "--config", path.resolve("server.properties").toString()};
        if (StorageTool.execute(args, System.err) != 0)
            throw new IOException("kafka.tools.StorageTool failed");
        System.out.println("formatted " + path + " broker=" + broker + " controller=" + controller);
    }

    private static int freePort(int taken) throws IOException {
        for (int i = 0; i < PORT_TRIES; i++) {
            int port = ThreadLocalRandom.current().nextInt(PORT_MIN, PORT_MAX);
            if (port == taken)
                continue;
            try (ServerSocket socket = new ServerSocket(port, 1, InetAddress.getLoopbackAddress())) {
                return socket.getLocalPort();
            } catch (IOException e) {
                continue; // in use: try another
            }
        }
        throw new IOException("no free port in " + PORT_TRIES + " tries");
    }
}
