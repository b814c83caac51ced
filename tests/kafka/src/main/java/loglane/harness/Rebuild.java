package loglane.harness;

import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.utils.Time;
import org.apache.kafka.server.util.KafkaScheduler;
import org.apache.kafka.storage.internals.checkpoint.LeaderEpochCheckpointFile;
import org.apache.kafka.storage.internals.epoch.LeaderEpochFileCache;
import org.apache.kafka.storage.internals.log.LogConfig;
import org.apache.kafka.storage.internals.log.LogDirFailureChannel;
import org.apache.kafka.storage.internals.log.LogFileUtils;
import org.apache.kafka.storage.internals.log.LogSegment;
import org.apache.kafka.storage.internals.log.ProducerStateManager;
import org.apache.kafka.storage.internals.log.ProducerStateManagerConfig;
import org.apache.kafka.storage.internals.log.UnifiedLog;

import java.io.File;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.Map;
import java.util.stream.Stream;

/**
 * `rebuild`: copies the .log files of a partition and lets Kafka's own LogSegment.recover write the indexes anew.
 * It ends as for a segment that is rolled or closed: largest timestamp appended to the time index, both trimmed.
 * One producer state and one leader epoch cache run through all segments, so .txnindex, .snapshot (at each
 * segment's end) and leader-epoch-checkpoint come out as well.
 */
final class Rebuild {
    private Rebuild() { }

    private static final int TRANSACTION_TIMEOUT_MS_MAX = 900_000;
    private static final int PRODUCER_EXPIRATION_MS = 86_400_000;

    static void run(String from, String to, List<String> configs) throws Exception {
        Path source = Path.of(from).toAbsolutePath().normalize();
        Path target = Path.of(to).toAbsolutePath().normalize();
        Files.createDirectories(target);
        try (Stream<Path> present = Files.list(target)) {
            if (present.findAny().isPresent())
                throw new IllegalArgumentException(target + " is not empty");
        }
        List<Path> logs;
        try (Stream<Path> files = Files.list(source)) {
            logs = files.filter(file -> file.toString().endsWith(LogFileUtils.LOG_FILE_SUFFIX)).sorted().toList();
        }
        if (logs.isEmpty())
            throw new IllegalArgumentException("no .log file in " + source);

        LogConfig config = new LogConfig(Map.copyOf(Workdir.pairs(configs)));
        TopicPartition tp = topicPartition(source);
        KafkaScheduler scheduler = new KafkaScheduler(1);
        scheduler.startup();
        try {
            ProducerStateManager producers = new ProducerStateManager(tp, target.toFile(), TRANSACTION_TIMEOUT_MS_MAX,
                new ProducerStateManagerConfig(PRODUCER_EXPIRATION_MS, false), Time.SYSTEM);
            LeaderEpochFileCache epochs = new LeaderEpochFileCache(tp,
                new LeaderEpochCheckpointFile(LeaderEpochCheckpointFile.newFile(target.toFile()), new LogDirFailureChannel(1)),
                scheduler);
            for (Path log : logs) {
                Path copy = target.resolve(log.getFileName());
                Files.copy(log, copy);
                rebuild(copy.toFile(), config, producers, epochs);
            }
        } finally {
            scheduler.shutdown();
        }
    }

    private static void rebuild(File log, LogConfig config, ProducerStateManager producers, LeaderEpochFileCache epochs)
            throws IOException {
        long base = LogFileUtils.offsetFromFile(log);
        int truncated;
        try (LogSegment segment = LogSegment.open(log.getParentFile(), base, config, Time.SYSTEM, true, 0, false, "")) {
            truncated = segment.recover(producers, epochs);
        }
        producers.takeSnapshot();
        System.out.println("rebuilt " + log.getName()
            + " bytes=" + log.length()
            + " truncated=" + truncated
            + " index=" + LogFileUtils.offsetIndexFile(log.getParentFile(), base, "").length()
            + " timeindex=" + LogFileUtils.timeIndexFile(log.getParentFile(), base, "").length());
    }

    private static TopicPartition topicPartition(Path directory) {
        try {
            return UnifiedLog.parseTopicPartitionName(directory.toFile());
        } catch (IOException | RuntimeException e) {
            return new TopicPartition("rebuilt", 0); // only names things in log lines
        }
    }
}
