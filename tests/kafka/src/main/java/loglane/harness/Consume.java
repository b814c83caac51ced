package loglane.harness;

import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.ConsumerRecords;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;

import java.io.ByteArrayOutputStream;
import java.io.OutputStream;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;

/** `consume`: every record from the log start offset to the end, as the real consumer reads it. */
final class Consume {
    private Consume() { }

    private static final long STALL_MS = 30_000;

    static void run(Workdir workdir, String topic, String out) throws Exception {
        Map<String, Object> config = workdir.clientConfig();
        config.put("auto.offset.reset", "none"); // an offset out of range is a fault of the log, not to be papered over
        config.put("enable.auto.commit", false);
        config.put("check.crcs", true);
        Map<Integer, ByteArrayOutputStream> lines = new TreeMap<>();
        long count = 0;
        try (KafkaConsumer<byte[], byte[]> consumer =
                 new KafkaConsumer<>(config, new ByteArrayDeserializer(), new ByteArrayDeserializer())) {
            List<TopicPartition> partitions = consumer.partitionsFor(topic).stream()
                .map(p -> new TopicPartition(topic, p.partition())).toList();
            consumer.assign(partitions);
            consumer.seekToBeginning(partitions);
            Map<TopicPartition, Long> ends = consumer.endOffsets(partitions);
            long progress = System.currentTimeMillis();
            while (ends.entrySet().stream().anyMatch(end -> consumer.position(end.getKey()) < end.getValue())) {
                ConsumerRecords<byte[], byte[]> records = consumer.poll(Duration.ofMillis(200));
                for (ConsumerRecord<byte[], byte[]> record : records) {
                    String line = Canonical.line(record.partition(), record.offset(),
                        Canonical.rest(record.timestamp(), record.key(), record.value(), record.headers()));
                    lines.computeIfAbsent(record.partition(), p -> new ByteArrayOutputStream())
                        .writeBytes((line + "\n").getBytes(StandardCharsets.US_ASCII));
                    count++;
                }
                if (!records.isEmpty())
                    progress = System.currentTimeMillis();
                else if (System.currentTimeMillis() - progress > STALL_MS)
                    throw new Harness.Fault("no record for " + STALL_MS + " ms before the end offsets " + ends);
            }
        }
        try (OutputStream file = Files.newOutputStream(Path.of(out))) {
            for (ByteArrayOutputStream partition : lines.values())
                partition.writeTo(file);
        }
        System.out.println("consumed " + count + " " + out);
    }
}
