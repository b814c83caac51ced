package loglane.harness;

import org.apache.kafka.clients.admin.Admin;
import org.apache.kafka.clients.admin.NewTopic;
import org.apache.kafka.clients.admin.RecordsToDelete;
import org.apache.kafka.clients.admin.TopicDescription;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.Uuid;
import org.apache.kafka.common.errors.TopicExistsException;
import org.apache.kafka.common.errors.UnknownTopicOrPartitionException;

import java.util.List;
import java.util.Map;
import java.util.concurrent.ExecutionException;

/** The commands that are one call of Kafka's Admin client. */
final class Topics {
    private Topics() { }

    private static final long WAIT_MS = 30_000;

    static void create(Workdir workdir, String topic, int partitions, List<String> configs) throws Exception {
        try (Admin admin = workdir.admin()) {
            NewTopic request = new NewTopic(topic, partitions, (short) 1).configs(Workdir.pairs(configs));
            admin.createTopics(List.of(request)).all().get();
            System.out.println(awaitLeaders(admin, topic, partitions).topicId());
        }
    }

    /** The topic as it is, or made anew: a test may produce to a topic that our engine wrote. */
    static void createIfMissing(Workdir workdir, String topic, int partitions, Map<String, String> configs) throws Exception {
        try (Admin admin = workdir.admin()) {
            try {
                admin.createTopics(List.of(new NewTopic(topic, partitions, (short) 1).configs(configs))).all().get();
            } catch (ExecutionException e) {
                if (!(e.getCause() instanceof TopicExistsException))
                    throw e;
            }
            awaitLeaders(admin, topic, partitions);
        }
    }

    static Uuid topicId(Workdir workdir, String topic) throws Exception {
        try (Admin admin = workdir.admin()) {
            return admin.describeTopics(List.of(topic)).allTopicNames().get().get(topic).topicId();
        }
    }

    static void delete(Workdir workdir, String topic) throws Exception {
        try (Admin admin = workdir.admin()) {
            admin.deleteTopics(List.of(topic)).all().get();
        }
    }

    static void deleteRecords(Workdir workdir, String topic, int partition, long offset) throws Exception {
        try (Admin admin = workdir.admin()) {
            TopicPartition tp = new TopicPartition(topic, partition);
            long low = admin.deleteRecords(Map.of(tp, RecordsToDelete.beforeOffset(offset)))
                .lowWatermarks().get(tp).get().lowWatermark();
            System.out.println(low);
        }
    }

    private static TopicDescription awaitLeaders(Admin admin, String topic, int partitions) throws Exception {
        long deadline = System.currentTimeMillis() + WAIT_MS;
        while (true) {
            try {
                TopicDescription description = admin.describeTopics(List.of(topic)).allTopicNames().get().get(topic);
                if (description.partitions().size() != partitions)
                    throw new IllegalArgumentException(topic + " has " + description.partitions().size()
                        + " partitions, not " + partitions);
                if (description.partitions().stream().allMatch(p -> p.leader() != null && !p.leader().isEmpty()))
                    return description;
            } catch (ExecutionException e) {
                // Just created: the broker may not have heard of it yet.
                if (!(e.getCause() instanceof UnknownTopicOrPartitionException))
                    throw e;
            }
            if (System.currentTimeMillis() > deadline)
                throw new IllegalStateException("no leader for all of " + topic + " after " + WAIT_MS + " ms");
            Thread.sleep(50);
        }
    }
}
