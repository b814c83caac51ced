package loglane.harness;

import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.clients.producer.RecordMetadata;
import org.apache.kafka.common.header.Header;
import org.apache.kafka.common.header.internals.RecordHeader;
import org.apache.kafka.common.serialization.ByteArraySerializer;

import java.io.BufferedWriter;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Comparator;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.SplittableRandom;
import java.util.concurrent.Future;

/**
 * `produce`: records that depend on the seed alone, through five producers, one for each codec. They take turns,
 * each flushing before the next begins, so that a partition holds all codecs mixed and yet the same record at the
 * same offset for the same seed. (Where batches end is Kafka's choice and differs from run to run.)
 */
final class Produce {
    private Produce() { }

    private static final String[] CODECS = {"none", "gzip", "snappy", "lz4", "zstd"};
    /** Different sizes, on both sides of index.interval.bytes = 4096. */
    private static final int[] BATCH_BYTES = {16_384, 65_536, 2_048, 32_768, 8_192};
    /** Fixed, so that the seed says it all; a test of producer expiry (1 d) or retention needs a recent one. */
    private static final long FIRST_TIMESTAMP =
        Long.parseLong(System.getenv().getOrDefault("LOGLANE_KAFKA_FIRST_TIMESTAMP", "1700000000000"));
    private static final int VALUE_BYTES_MAX = 2_048;

    private record Sent(String rest, Future<RecordMetadata> ack) { }

    private record Line(int partition, long offset, String rest) { }

    static void run(Workdir workdir, String topic, int partitions, int records, long seed, List<String> configs) throws Exception {
        Map<String, String> topicConfig = new HashMap<>(Map.of("segment.bytes", "1048576"));
        topicConfig.putAll(Workdir.pairs(configs));
        Topics.createIfMissing(workdir, topic, partitions, topicConfig);

        SplittableRandom random = new SplittableRandom(seed);
        List<KafkaProducer<byte[], byte[]>> producers = new ArrayList<>();
        List<Sent> sent = new ArrayList<>(records);
        try {
            for (int i = 0; i < CODECS.length; i++)
                producers.add(producer(workdir, CODECS[i], BATCH_BYTES[i]));
            int codec = 0;
            for (int from = 0; from < records; ) {
                int chunk = Math.min(records - from, random.nextInt(1, 1_000));
                KafkaProducer<byte[], byte[]> producer = producers.get(codec++ % producers.size());
                for (int i = from; i < from + chunk; i++) {
                    ProducerRecord<byte[], byte[]> record = record(random, topic, partitions, i);
                    sent.add(new Sent(
                        Canonical.rest(record.timestamp(), record.key(), record.value(), record.headers()),
                        producer.send(record)));
                }
                producer.flush();
                from += chunk;
            }
        } finally {
            producers.forEach(KafkaProducer::close);
        }

        List<Line> lines = new ArrayList<>(records);
        for (Sent one : sent) {
            RecordMetadata at = one.ack().get();
            lines.add(new Line(at.partition(), at.offset(), one.rest()));
        }
        lines.sort(Comparator.comparingInt(Line::partition).thenComparingLong(Line::offset));
        Path expected = workdir.path().resolve("expected-" + topic + ".txt");
        try (BufferedWriter writer = Files.newBufferedWriter(expected, StandardCharsets.US_ASCII)) {
            for (Line line : lines)
                writer.append(Canonical.line(line.partition(), line.offset(), line.rest())).append('\n');
        }
        System.out.println("produced " + lines.size() + " " + expected);
    }

    private static KafkaProducer<byte[], byte[]> producer(Workdir workdir, String codec, int batchBytes) throws Exception {
        Map<String, Object> config = workdir.clientConfig();
        config.put("acks", "all");
        config.put("compression.type", codec);
        config.put("batch.size", batchBytes);
        config.put("linger.ms", 2);
        return new KafkaProducer<>(config, new ByteArraySerializer(), new ByteArraySerializer());
    }

    private static ProducerRecord<byte[], byte[]> record(SplittableRandom random, String topic, int partitions, int i) {
        int partition = random.nextInt(partitions);
        // Mostly rising, as real ones are, with steps back and repeats: the time index must skip those.
        long timestamp = FIRST_TIMESTAMP + i * 20L + random.nextInt(-500, 500);
        byte[] key = random.nextInt(5) == 0 ? null : bytes(random, random.nextInt(25), true);
        byte[] value = random.nextInt(20) == 0 ? null : bytes(random, valueBytes(random), random.nextBoolean());
        List<Header> headers = new ArrayList<>();
        for (int h = random.nextInt(4); h > 0; h--) {
            byte[] content = random.nextInt(4) == 0 ? null : bytes(random, random.nextInt(12), false);
            // Names repeat (Kafka allows it), are not all ASCII, and may be empty.
            String name = switch (random.nextInt(6)) {
                case 0 -> "";
                case 1 -> "größe";
                default -> "h" + random.nextInt(3);
            };
            headers.add(new RecordHeader(name, content));
        }
        return new ProducerRecord<>(topic, partition, timestamp, key, value, headers);
    }

    /** Most are small, some are large; 0 and the largest do occur. */
    private static int valueBytes(SplittableRandom random) {
        return random.nextInt(4) == 0 ? random.nextInt(VALUE_BYTES_MAX + 1) : random.nextInt(200);
    }

    private static byte[] bytes(SplittableRandom random, int length, boolean compressible) {
        byte[] bytes = new byte[length];
        if (compressible) {
            for (int i = 0; i < length; i++)
                bytes[i] = (byte) ('a' + random.nextInt(1 + i % 4));
        } else {
            random.nextBytes(bytes);
        }
        return bytes;
    }
}
