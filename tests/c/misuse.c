/* Every handle misused, every pointer NULL: a status each time, and never a crash. */
#include <loglane.h>
#include <stdio.h>
#include <string.h>

static int failures = 0;

static void expect(int32_t expected, int32_t status, const char *what) {
  if (status != expected) {
    fprintf(stderr, "%s: status %d, expected %d\n", what, status, expected);
    failures++;
  }
}

int main(int argc, char **argv) {
  if (argc != 2) return 2;
  loglane_error error;
  memset(&error, 0, sizeof error);
  error.struct_size = sizeof error;
  loglane_engine_options options;
  memset(&options, 0, sizeof options);
  options.dir = argv[1];
  loglane_engine engine = 0, second = 0;
  expect(LOGLANE_INVALID_ARGUMENT, loglane_engine_open(&options, &engine, &error), "size 0");
  options.struct_size = sizeof options;
  expect(LOGLANE_INVALID_ARGUMENT, loglane_engine_open(NULL, &engine, &error), "no options");
  expect(LOGLANE_INVALID_ARGUMENT, loglane_engine_open(&options, NULL, NULL), "no output");
  options.dir = NULL;
  expect(LOGLANE_INVALID_ARGUMENT, loglane_engine_open(&options, &engine, &error), "no dir");
  options.dir = argv[1];
  options.shards = 1000;
  expect(LOGLANE_CONFIG, loglane_engine_open(&options, &engine, &error), "1000 shards");
  options.shards = 1;
  expect(LOGLANE_OK, loglane_engine_open(&options, &engine, &error), "open");
  expect(LOGLANE_LOCKED, loglane_engine_open(&options, &second, &error), "a second open");
  if (strstr(error.message, "in use") == NULL) failures++;

  loglane_partition partition = 0;
  expect(LOGLANE_TOPIC_NAME, loglane_topic_create(engine, "../x", 1, &error), "a path");
  expect(LOGLANE_CONFIG, loglane_topic_create(engine, "t", 0, &error), "no partitions");
  expect(LOGLANE_OK, loglane_topic_create(engine, "t", 2, &error), "create");
  expect(LOGLANE_ALREADY_EXISTS, loglane_topic_create(engine, "t", 2, &error), "twice");
  expect(LOGLANE_NOT_FOUND, loglane_partition_open(engine, "t", 2, &partition, &error), "2 of 2");
  expect(LOGLANE_OK, loglane_partition_open(engine, "t", 1, &partition, &error), "1 of 2");

  loglane_receipt receipt;
  uint8_t garbage[100];
  memset(garbage, 0x5a, sizeof garbage);
  expect(LOGLANE_INVALID_BATCH,
         loglane_append(partition, garbage, sizeof garbage, LOGLANE_WRITTEN, &receipt, &error),
         "garbage");
  expect(LOGLANE_INVALID_BATCH, loglane_append(partition, NULL, 0, LOGLANE_WRITTEN, &receipt, NULL),
         "nothing");
  expect(LOGLANE_INVALID_ARGUMENT,
         loglane_append(partition, NULL, 5, LOGLANE_WRITTEN, &receipt, &error), "NULL bytes");
  expect(LOGLANE_INVALID_ARGUMENT, loglane_append(partition, garbage, 100, 9, &receipt, &error),
         "class 9");
  expect(LOGLANE_INVALID_HANDLE, loglane_append(engine, garbage, 100, 0, &receipt, &error),
         "an engine is no partition");

  loglane_lease lease = 0;
  loglane_fetch_info info;
  expect(LOGLANE_OFFSET_OUT_OF_RANGE, loglane_fetch(partition, 7, 1, 0, &lease, &info, &error),
         "past the end");
  expect(LOGLANE_OFFSET_OUT_OF_RANGE, loglane_fetch(partition, -7, 1, 1, &lease, &info, &error),
         "before the start");
  expect(LOGLANE_OK, loglane_fetch(partition, 0, 1, 0, &lease, &info, &error), "empty");
  loglane_range range;
  uint64_t sent;
  size_t copied;
  expect(LOGLANE_INVALID_ARGUMENT, loglane_lease_range(lease, 0, &range, &error), "no range");
  expect(LOGLANE_INVALID_ARGUMENT, loglane_lease_send(lease, -1, 0, &sent, &error), "socket -1");
  expect(LOGLANE_OK, loglane_lease_copy(lease, 99, NULL, 0, &copied, &error), "copy of nothing");
  expect(LOGLANE_OK, loglane_lease_release(lease), "release");
  expect(LOGLANE_INVALID_HANDLE, loglane_lease_release(lease), "release twice");
  expect(LOGLANE_INVALID_HANDLE, loglane_lease_copy(lease, 0, garbage, 1, &copied, &error),
         "use after release");

  expect(LOGLANE_OK, loglane_engine_close(engine, &error), "close");
  expect(LOGLANE_INVALID_HANDLE, loglane_engine_close(engine, &error), "close twice");
  expect(LOGLANE_INVALID_HANDLE, loglane_topic_create(engine, "u", 1, &error), "use after close");
  int64_t durable;
  expect(LOGLANE_CLOSED, loglane_flush(partition, &durable, &error), "its partition");
  expect(LOGLANE_OK, loglane_partition_release(partition), "release");
  for (uint64_t handle = 0; handle < 3; handle++) {
    expect(LOGLANE_INVALID_HANDLE, loglane_partition_release(handle), "garbage handle");
    expect(LOGLANE_INVALID_HANDLE, loglane_engine_close(~handle, NULL), "garbage handle");
  }
  if (loglane_abi_version() != LOGLANE_ABI_VERSION) failures++;
  return failures == 0 ? 0 : 1;
}
