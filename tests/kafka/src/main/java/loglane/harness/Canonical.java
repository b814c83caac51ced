package loglane.harness;

import org.apache.kafka.common.header.Header;

import java.nio.charset.StandardCharsets;
import java.util.HexFormat;
import java.util.zip.CRC32C;

/**
 * A record as one line of text, the same for every reader; README.md of tests/kafka is its definition:
 * {@code partition offset timestamp key value headers}.
 */
final class Canonical {
    private Canonical() { }

    static String line(int partition, long offset, String rest) {
        return partition + " " + offset + " " + rest;
    }

    /** All but partition and offset, which a producer learns later. */
    static String rest(long timestamp, byte[] key, byte[] value, Iterable<Header> headers) {
        StringBuilder line = new StringBuilder(64 + (key == null ? 0 : 2 * key.length));
        line.append(timestamp).append(' ').append(bytes(key)).append(' ');
        if (value == null) {
            line.append("null");
        } else {
            CRC32C crc = new CRC32C();
            crc.update(value, 0, value.length);
            line.append(value.length).append(':').append(String.format("%08x", crc.getValue()));
        }
        char separator = ' ';
        for (Header header : headers) {
            line.append(separator).append(bytes(header.key().getBytes(StandardCharsets.UTF_8)))
                .append('=').append(bytes(header.value()));
            separator = ',';
        }
        if (separator == ' ')
            line.append(" -");
        return line.toString();
    }

    private static String bytes(byte[] bytes) {
        return bytes == null ? "null" : "0x" + HexFormat.of().formatHex(bytes);
    }
}
