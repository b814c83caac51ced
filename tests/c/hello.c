/* Hello world: append two records, fetch them, send them through a socket by sendfile. */
#include <loglane.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static void check(int32_t status, const loglane_error *error) {
  if (status != LOGLANE_OK) {
    fprintf(stderr, "%s: %s\n", loglane_status_text(status), error->message);
    exit(1);
  }
}

int main(int argc, char **argv) {
  if (argc != 2) {
    fprintf(stderr, "usage: %s DIR\n", argv[0]);
    return 2;
  }
  loglane_error error;
  memset(&error, 0, sizeof error);
  error.struct_size = sizeof error;

  loglane_engine_options options;
  memset(&options, 0, sizeof options);
  options.struct_size = sizeof options;
  options.dir = argv[1];

  loglane_engine engine;
  loglane_partition partition;
  check(loglane_engine_open(&options, &engine, &error), &error);
  check(loglane_topic_create(engine, "greetings", 1, &error), &error);
  check(loglane_partition_open(engine, "greetings", 0, &partition, &error), &error);

  loglane_batch batch;
  const uint8_t *hello = (const uint8_t *)"hello, log";
  check(loglane_batch_new(0, &batch, &error), &error);
  check(loglane_batch_add(batch, 1700000000000, NULL, 0, hello, 10, &error), &error);
  check(loglane_batch_add(batch, 1700000000001, hello, 5, NULL, 0, &error), &error);
  uint8_t bytes[256];
  size_t length;
  check(loglane_batch_finish(batch, bytes, sizeof bytes, &length, &error), &error);

  loglane_receipt receipt;
  check(loglane_append(partition, bytes, length, LOGLANE_DURABLE, &receipt, &error), &error);

  loglane_lease lease;
  loglane_fetch_info info;
  check(loglane_fetch(partition, 0, 1 << 20, LOGLANE_HIGH_WATERMARK, &lease, &info, &error),
        &error);

  /* To a socket, without a copy in user memory. */
  int sockets[2];
  uint64_t sent;
  if (socketpair(AF_UNIX, SOCK_STREAM, 0, sockets) != 0) return 1;
  check(loglane_lease_send(lease, sockets[0], 0, &sent, &error), &error);
  uint8_t received[256];
  ssize_t got = read(sockets[1], received, sizeof received);
  if (got < 0 || (uint64_t)got != sent || sent != info.bytes) return 1;

  loglane_records records;
  loglane_record record;
  int count = 0;
  check(loglane_records_open(received, (size_t)got, &records, &error), &error);
  while (loglane_records_next(records, &record, NULL) == LOGLANE_OK) {
    printf("%lld: %.*s\n", (long long)record.offset, (int)record.value_length,
           record.value ? (const char *)record.value : "");
    count++;
  }

  check(loglane_records_release(records), &error);
  check(loglane_lease_release(lease), &error);
  check(loglane_batch_release(batch), &error);
  check(loglane_partition_release(partition), &error);
  check(loglane_engine_close(engine, &error), &error);
  close(sockets[0]);
  close(sockets[1]);
  return count == 2 ? 0 : 1;
}
