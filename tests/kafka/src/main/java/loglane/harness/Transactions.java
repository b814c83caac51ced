package loglane.harness;

import org.apache.kafka.clients.admin.Admin;
import org.apache.kafka.clients.admin.ListOffsetsOptions;
import org.apache.kafka.clients.admin.OffsetSpec;
import org.apache.kafka.clients.admin.ProducerState;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.common.IsolationLevel;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;
import org.apache.kafka.common.serialization.ByteArraySerializer;

import java.time.Duration;
import java.util.ArrayList;
import java.util.Comparator;
import java.util.List;
import java.util.Map;

/**
 * `transactions`: an idempotent and two transactional producers on one partition, every third transaction aborted,
 * the last one of the second producer left open. `producers`: what the broker knows of a partition's producers.
 */
final class Transactions {
    private Transactions() { }

    private static final int VALUE_BYTES = 3_000;
    /** Longer than any test: the coordinator must not abort what is left open. */
    private static final int TIMEOUT_MS = 900_000;
    private static final long STALL_MS = 30_000;

    static void run(Workdir workdir, String topic, int count) throws Exception {
        Topics.createIfMissing(workdir, topic, 1, Map.of("segment.bytes", "1048576"));
        List<KafkaProducer<byte[], byte[]>> transactional = new ArrayList<>();
        KafkaProducer<byte[], byte[]> plain = producer(workdir, null);
        for (int i = 0; i < 2; i++) {
            transactional.add(producer(workdir, topic + "-" + i));
            transactional.get(i).initTransactions();
        }
        transactional.get(1).beginTransaction();
        send(transactional.get(1), topic);
        for (int i = 0; i < count; i++) {
            KafkaProducer<byte[], byte[]> producer = transactional.get(0);
            producer.beginTransaction();
            for (int j = 0; j <= i % 4; j++)
                send(producer, topic);
            send(plain, topic);
            if (i % 3 == 0)
                producer.abortTransaction();
            else
                producer.commitTransaction();
            if (i % 10 == 9) {
                transactional.get(1).abortTransaction();
                transactional.get(1).beginTransaction();
                send(transactional.get(1), topic);
            }
        }
        plain.close();
        // Not closed: the process ends with the transaction open.
        transactional.forEach(KafkaProducer::flush);
        System.out.println("transactions " + count);
    }

    /** One line for the last stable offset, one for each producer, one for each record that is committed. */
    static void describe(Workdir workdir, String topic) throws Exception {
        TopicPartition partition = new TopicPartition(topic, 0);
        long stable;
        try (Admin admin = workdir.admin()) {
            stable = admin.listOffsets(Map.of(partition, OffsetSpec.latest()),
                new ListOffsetsOptions(IsolationLevel.READ_COMMITTED)).partitionResult(partition).get().offset();
            System.out.println("stable " + stable);
            List<ProducerState> producers =
                new ArrayList<>(admin.describeProducers(List.of(partition)).partitionResult(partition).get().activeProducers());
            producers.sort(Comparator.comparingLong(ProducerState::producerId));
            for (ProducerState p : producers)
                System.out.println("producer " + p.producerId() + " " + p.producerEpoch() + " " + p.lastSequence() + " "
                    + p.lastTimestamp() + " " + p.coordinatorEpoch().orElse(-1) + " "
                    + p.currentTransactionStartOffset().orElse(-1));
        }
        Map<String, Object> config = workdir.clientConfig();
        config.put("isolation.level", "read_committed");
        config.put("auto.offset.reset", "none");
        config.put("enable.auto.commit", false);
        try (KafkaConsumer<byte[], byte[]> consumer =
                 new KafkaConsumer<>(config, new ByteArrayDeserializer(), new ByteArrayDeserializer())) {
            consumer.assign(List.of(partition));
            consumer.seekToBeginning(List.of(partition));
            long deadline = System.currentTimeMillis() + STALL_MS;
            while (consumer.position(partition) < stable) {
                for (ConsumerRecord<byte[], byte[]> record : consumer.poll(Duration.ofMillis(200)))
                    System.out.println("committed " + record.offset());
                if (System.currentTimeMillis() > deadline)
                    throw new Harness.Fault("stuck at " + consumer.position(partition) + " before " + stable);
            }
        }
    }

    private static void send(KafkaProducer<byte[], byte[]> producer, String topic) throws Exception {
        producer.send(new ProducerRecord<>(topic, 0, null, new byte[VALUE_BYTES])).get();
    }

    private static KafkaProducer<byte[], byte[]> producer(Workdir workdir, String transactionalId) throws Exception {
        Map<String, Object> config = workdir.clientConfig();
        config.put("acks", "all");
        config.put("linger.ms", 0);
        if (transactionalId != null) {
            config.put("transactional.id", transactionalId);
            config.put("transaction.timeout.ms", TIMEOUT_MS);
        }
        return new KafkaProducer<>(config, new ByteArraySerializer(), new ByteArraySerializer());
    }
}
