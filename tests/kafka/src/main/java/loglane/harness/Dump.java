package loglane.harness;

import org.apache.kafka.tools.DumpLogSegments;
import org.slf4j.LoggerFactory;

import java.io.BufferedOutputStream;
import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.io.OutputStream;
import java.io.PrintStream;
import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.TreeMap;
import java.util.function.Consumer;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import java.util.stream.Stream;

/**
 * `dump`: Kafka's DumpLogSegments over each file, its text read for faults, because the tool exits 0 whatever it
 * finds. A directory stands for all the segment files in it. For each file one `ok` or `FAULT` line.
 */
final class Dump {
    private Dump() { }

    private static final Pattern SEGMENT_FILE = Pattern.compile("\\d{20}\\.(log|index|timeindex|txnindex|snapshot)");
    private static final Pattern BATCH =
        Pattern.compile("baseOffset: (\\d+) lastOffset: (\\d+) count: (\\d+) .* compresscodec: (\\w+) .* isvalid: (true|false)");
    private static final Pattern GAP = Pattern.compile("  (-?\\d+) is followed by (-?\\d+)");
    private static final int OFFSET_ENTRY_BYTES = 8;
    private static final int TIME_ENTRY_BYTES = 12;
    private static final int FAULTS_SHOWN_MAX = 20;

    /** What the caller asked for. */
    private record Options(boolean print, boolean gaps, boolean live) { }

    /** What came of one file. */
    private static final class Report {
        final List<String> faults = new ArrayList<>();
        final TreeMap<String, Long> codecs = new TreeMap<>();
        long firstOffset = -1;
        long lastOffset = -1;
        long batches;
        long records;
        String passed = "";
    }

    static void run(List<String> args) throws Exception {
        boolean print = false;
        boolean gaps = false;
        boolean live = false;
        List<Path> files = new ArrayList<>();
        for (String arg : args) {
            switch (arg) {
                case "--print" -> print = true;
                case "--gaps" -> gaps = true;
                case "--live" -> live = true;
                default -> files.addAll(expand(Path.of(arg)));
            }
        }
        if (files.isEmpty())
            throw new IllegalArgumentException("dump: no file or directory named");
        // The logger takes hold of the real stderr here, before ours goes in its place.
        LoggerFactory.getLogger(Dump.class);
        int faulty = 0;
        for (Path file : files) {
            Report report = check(file, new Options(print, gaps, live));
            if (report.faults.isEmpty()) {
                System.out.println("ok " + file + summary(report));
            } else {
                faulty++;
                System.out.println("FAULT " + file + summary(report));
                report.faults.stream().limit(FAULTS_SHOWN_MAX).forEach(fault -> System.out.println("  " + fault));
                if (report.faults.size() > FAULTS_SHOWN_MAX)
                    System.out.println("  and " + (report.faults.size() - FAULTS_SHOWN_MAX) + " more lines");
            }
        }
        if (faulty > 0)
            throw new Harness.Fault("faults in " + faulty + " of " + files.size() + " files");
    }

    private static List<Path> expand(Path path) throws IOException {
        if (!Files.isDirectory(path))
            return List.of(path);
        try (Stream<Path> files = Files.list(path)) {
            return files.filter(file -> SEGMENT_FILE.matcher(file.getFileName().toString()).matches()).sorted().toList();
        }
    }

    private static String summary(Report report) {
        if (report.batches == 0)
            return report.passed;
        StringBuilder codecs = new StringBuilder();
        report.codecs.forEach((name, count) -> codecs.append(codecs.isEmpty() ? "" : ",").append(name).append(':').append(count));
        return " offsets=" + report.firstOffset + ".." + report.lastOffset + " batches=" + report.batches
            + " records=" + report.records + " codecs=" + codecs;
    }

    private static Report check(Path file, Options options) {
        Report report = new Report();
        String name = file.getFileName().toString();
        try {
            if (name.endsWith(".log")) {
                long base = Long.parseLong(name.substring(0, 20));
                List<String> args = new ArrayList<>(List.of("--deep-iteration", "--files", file.toString()));
                if (options.print)
                    args.add("--print-data-log");
                kafka(args, options, line -> logLine(line, report), line -> errorLine(line, base, options, report));
            } else if (name.endsWith(".index") || name.endsWith(".timeindex")) {
                // Two passes: the tool checks either the frame or the entries.
                for (String mode : List.of("--index-sanity-check", "--verify-index-only"))
                    kafka(List.of(mode, "--files", file.toString()), options, line -> { }, report.faults::add);
                report.passed = entries(file, name.endsWith(".index") ? OFFSET_ENTRY_BYTES : TIME_ENTRY_BYTES, options, report);
            } else {
                kafka(List.of("--files", file.toString()), options, line -> { }, report.faults::add);
            }
        } catch (Exception e) {
            report.faults.add(e.toString());
        }
        return report;
    }

    private static void logLine(String line, Report report) {
        if (line.startsWith("baseOffset: ")) {
            Matcher batch = BATCH.matcher(line);
            if (!batch.matches()) {
                report.faults.add("not understood: " + line);
                return;
            }
            if (report.batches++ == 0)
                report.firstOffset = Long.parseLong(batch.group(1));
            report.lastOffset = Long.parseLong(batch.group(2));
            report.records += Long.parseLong(batch.group(3));
            report.codecs.merge(batch.group(4), 1L, Long::sum);
            if (batch.group(5).equals("false"))
                report.faults.add(line);
        } else if (line.startsWith("Found ")) {
            report.faults.add(line); // "Found 17 invalid bytes at the end of …"
        }
    }

    /**
     * stderr of a .log: the tool begins at offset -1 in each file, so it calls the first record of every segment
     * but the first "non-consecutive"; that is no fault if the record is the segment's first offset.
     */
    private static void errorLine(String line, long base, Options options, Report report) {
        if (line.startsWith("Non-consecutive offsets in "))
            return; // only a heading
        Matcher gap = GAP.matcher(line);
        if (gap.matches()) {
            boolean first = gap.group(1).equals("-1") && Long.parseLong(gap.group(2)) == base;
            if (first || options.gaps && Long.parseLong(gap.group(2)) > Long.parseLong(gap.group(1)))
                return;
        }
        report.faults.add(line);
    }

    /**
     * What the tool does not look at: it stops without a word at the first zero entry, as it must for an index that
     * a running broker has preallocated, and it never compares an entry of .index with the one before.
     */
    private static String entries(Path file, int entryBytes, Options options, Report report) throws IOException {
        ByteBuffer bytes = ByteBuffer.wrap(Files.readAllBytes(file));
        int keyBytes = entryBytes - Integer.BYTES;
        long previousKey = Long.MIN_VALUE;
        int previousLast = Integer.MIN_VALUE;
        int count = 0;
        for (; bytes.remaining() >= entryBytes; count++) {
            long key = keyBytes == Long.BYTES ? bytes.getLong() : bytes.getInt();
            int last = bytes.getInt();
            if (count > 0 && key == 0 && last == 0) {
                if (!options.live)
                    report.faults.add("harness: entry " + count + " is zero: the index is not trimmed");
                break;
            }
            // Both fields of both files rise from entry to entry.
            if (key <= previousKey || last <= previousLast)
                report.faults.add("harness: entry " + count + " (" + key + "," + last + ") is not above (" + previousKey + "," + previousLast + ")");
            previousKey = key;
            previousLast = last;
        }
        return " entries=" + count;
    }

    /** Runs the tool; its stdout and stderr go, line by line, to the two readers. */
    private static void kafka(List<String> args, Options options, Consumer<String> out, Consumer<String> err) throws IOException {
        PrintStream realOut = System.out;
        PrintStream realErr = System.err;
        Consumer<String> echo = options.print ? realOut::println : line -> { };
        try (PrintStream toolOut = lines(out.andThen(echo)); PrintStream toolErr = lines(err)) {
            System.setOut(toolOut);
            System.setErr(toolErr);
            DumpLogSegments.main(args.toArray(String[]::new));
        } finally {
            System.setOut(realOut);
            System.setErr(realErr);
        }
    }

    private static PrintStream lines(Consumer<String> reader) {
        OutputStream splitter = new OutputStream() {
            private final ByteArrayOutputStream line = new ByteArrayOutputStream();

            @Override
            public void write(int b) {
                if (b != '\n') {
                    line.write(b);
                    return;
                }
                reader.accept(line.toString(StandardCharsets.UTF_8));
                line.reset();
            }

            @Override
            public void close() {
                if (line.size() > 0)
                    write('\n');
            }
        };
        return new PrintStream(new BufferedOutputStream(splitter, 1 << 16), false, StandardCharsets.UTF_8);
    }
}
