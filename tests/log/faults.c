/* Preloaded into a writing process: counts the syncs of the spool's files, knows whether its write-ahead log has been
 * written to since it was last synced, and fails one of their syncs or all writes on demand. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static int syncs, failing_sync_errno, failing_write_errno;
static volatile int wal_writes, synced_wal_writes;

int faults_syncs(void) { return syncs; }
int faults_unsynced_wal_writes(void) { return wal_writes - synced_wal_writes; }
void faults_fail_next_sync(int error) { failing_sync_errno = error; }
void faults_fail_writes(int error) { failing_write_errno = error; }

static int is_called(int descriptor, const char *part) {
  char link[64], path[4096];
  snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
  ssize_t length = readlink(link, path, sizeof path - 1);
  if (length < 0) return 0;
  path[length] = 0;
  return strstr(path, part) != NULL;
}

static int is_spool(int descriptor) { return is_called(descriptor, "/spool.sqlite"); }
static int is_wal(int descriptor) { return is_called(descriptor, "/spool.sqlite-wal"); }

static int sync_fails(int descriptor) {
  if (!is_spool(descriptor)) return 0;
  syncs++;
  errno = failing_sync_errno;
  failing_sync_errno = 0; /* as in Linux: the next one says that all is well */
  return errno != 0;
}

static int synced(int (*really)(int), int descriptor) {
  if (sync_fails(descriptor)) return -1;
  int before = wal_writes, result = really(descriptor);
  if (!result && is_wal(descriptor)) synced_wal_writes = before; /* what came meanwhile may not be on disk */
  return result;
}

static int write_fails(int descriptor) {
  if (is_wal(descriptor)) wal_writes++;
  if (!failing_write_errno || !is_spool(descriptor)) return 0;
  errno = failing_write_errno;
  return 1;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

int fsync(int fd) { return synced(REAL(fsync), fd); }
int fdatasync(int fd) { return synced(REAL(fdatasync), fd); }
ssize_t write(int fd, const void *data, size_t n) { return write_fails(fd) ? -1 : REAL(write)(fd, data, n); }
ssize_t pwrite(int fd, const void *data, size_t n, off_t at) {
  return write_fails(fd) ? -1 : REAL(pwrite)(fd, data, n, at);
}
ssize_t pwrite64(int fd, const void *data, size_t n, off64_t at) {
  return write_fails(fd) ? -1 : REAL(pwrite64)(fd, data, n, at);
}
