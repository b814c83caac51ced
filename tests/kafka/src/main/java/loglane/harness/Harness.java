package loglane.harness;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;

/**
 * What run.sh starts: one command, or several with `+` between them, in one JVM, because starting a JVM
 * costs more than most commands do. Exit codes: 0 done, 1 Kafka found a fault, 2 the command failed.
 */
public final class Harness {
    private Harness() { }

    /** Kafka, or our reading of its answer, says that a file is wrong. */
    static final class Fault extends Exception {
        private static final long serialVersionUID = 1L;

        Fault(String message) {
            super(message);
        }
    }

    public static void main(String[] args) {
        int exit = 0;
        try {
            for (List<String> command : split(args))
                run(command.get(0), command.subList(1, command.size()));
        } catch (Fault e) {
            System.err.println("kafka harness: " + e.getMessage());
            exit = 1;
        } catch (IllegalArgumentException e) {
            System.err.println("kafka harness: " + e.getMessage());
            exit = 2;
        } catch (Throwable e) {
            System.err.print("kafka harness: " + String.join(" ", args) + " failed: ");
            e.printStackTrace();
            exit = 2;
        }
        System.out.flush();
        // Not System.exit: client threads that are slow to end must not hold up the caller.
        Runtime.getRuntime().halt(exit);
    }

    private static void run(String command, List<String> args) throws Exception {
        switch (command) {
            case "format" -> Format.run(Workdir.at(need(args, 0, "workdir")), rest(args, 1));
            case "create" -> {
                Workdir workdir = Workdir.at(need(args, 0, "workdir"));
                Topics.create(workdir, need(args, 1, "topic"), number(args, 2, "partitions"), rest(args, 3));
            }
            case "topic-id" ->
                System.out.println(Topics.topicId(Workdir.at(need(args, 0, "workdir")), need(args, 1, "topic")));
            case "delete-topic" ->
                Topics.delete(Workdir.at(need(args, 0, "workdir")), need(args, 1, "topic"));
            case "delete-records" ->
                Topics.deleteRecords(Workdir.at(need(args, 0, "workdir")), need(args, 1, "topic"),
                    number(args, 2, "partition"), Long.parseLong(need(args, 3, "offset")));
            case "produce" ->
                Produce.run(Workdir.at(need(args, 0, "workdir")), need(args, 1, "topic"), number(args, 2, "partitions"),
                    number(args, 3, "records"), Long.parseLong(need(args, 4, "seed")), rest(args, 5));
            case "consume" ->
                Consume.run(Workdir.at(need(args, 0, "workdir")), need(args, 1, "topic"), need(args, 2, "out-file"));
            case "transactions" ->
                Transactions.run(Workdir.at(need(args, 0, "workdir")), need(args, 1, "topic"), number(args, 2, "count"));
            case "producers" ->
                Transactions.describe(Workdir.at(need(args, 0, "workdir")), need(args, 1, "topic"));
            case "dump" -> Dump.run(args);
            case "rebuild" ->
                Rebuild.run(need(args, 0, "partition-dir"), need(args, 1, "out-dir"), rest(args, 2));
            default -> throw new IllegalArgumentException("no command " + command);
        }
    }

    private static List<List<String>> split(String[] args) {
        List<List<String>> commands = new ArrayList<>();
        commands.add(new ArrayList<>());
        for (String arg : args) {
            if (arg.equals("+"))
                commands.add(new ArrayList<>());
            else
                commands.get(commands.size() - 1).add(arg);
        }
        if (commands.stream().anyMatch(List::isEmpty))
            throw new IllegalArgumentException("an empty command in: " + Arrays.toString(args));
        return commands;
    }

    static String need(List<String> args, int at, String name) {
        if (at >= args.size())
            throw new IllegalArgumentException("argument missing: <" + name + ">");
        return args.get(at);
    }

    private static int number(List<String> args, int at, String name) {
        return Integer.parseInt(need(args, at, name));
    }

    private static List<String> rest(List<String> args, int from) {
        return from >= args.size() ? List.of() : args.subList(from, args.size());
    }
}
