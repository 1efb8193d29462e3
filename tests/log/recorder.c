/* Preloaded into a process: writes down, in order, what it does to files under one folder.
 *
 * RECORD_FOLDER: the folder, absolute and empty at first. RECORD_TRACE: the file to write to, elsewhere.
 * Each entry: kind (1 byte), inode (8), offset (8), length of path (4), length of data (4), path, data; little endian.
 *
 *   C create or M make a folder (path) · W write (inode, offset, data) · T truncate (inode, offset: the new size)
 *   S sync (inode, path) · R rename, L link (path, data: the new path) · U remove (path) · N note (data)
 *
 * Only absolute paths count. What is written through mapped memory is not seen; SQLite keeps nothing there that counts
 * after a crash.
 */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static pthread_mutex_t order = PTHREAD_MUTEX_INITIALIZER;
static int trace = -1;

static int is_under(const char *path) {
  const char *folder = getenv("RECORD_FOLDER");
  return folder && path && !strncmp(path, folder, strlen(folder));
}

static void put(const void *data, size_t length) {
  if (REAL(write)(trace, data, length) != (ssize_t)length) abort();
}

static void enter(char kind, uint64_t inode, uint64_t offset, const char *path, const void *data, uint32_t length) {
  if (trace < 0) trace = REAL(open)(getenv("RECORD_TRACE"), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
  uint32_t path_length = path ? strlen(path) : 0;
  put(&kind, 1), put(&inode, 8), put(&offset, 8), put(&path_length, 4), put(&length, 4);
  if (path_length) put(path, path_length);
  if (length) put(data, length);
}

static int path_of(int descriptor, char *path, size_t size) {
  char link[64];
  snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
  ssize_t length = readlink(link, path, size - 1);
  path[length < 0 ? 0 : length] = 0;
  return is_under(path);
}

static uint64_t inode_of(int descriptor) {
  struct stat status;
  return fstat(descriptor, &status) ? 0 : status.st_ino;
}

/* The call and its entry are one step; nothing else is entered between them. */
#define RECORDED(watched, call, entry)                     \
  __typeof__(call) result;                                 \
  if (!(watched)) return call;                             \
  pthread_mutex_lock(&order);                              \
  result = call;                                           \
  if (result >= 0) { entry; }                              \
  pthread_mutex_unlock(&order);                            \
  return result

void recorder_note(const char *text) {
  pthread_mutex_lock(&order);
  enter('N', 0, 0, NULL, text, strlen(text));
  pthread_mutex_unlock(&order);
}

static int opened(int (*really)(const char *, int, ...), const char *path, int flags, mode_t mode) {
  int is_new = access(path, F_OK) != 0;
  RECORDED(is_under(path) && flags & (O_CREAT | O_TRUNC), really(path, flags, mode), {
    if (is_new) enter('C', inode_of(result), 0, path, NULL, 0);
    else if (flags & O_TRUNC) enter('T', inode_of(result), 0, NULL, NULL, 0);
  });
}

#define MODE(last) ({ va_list more; va_start(more, last); mode_t m = va_arg(more, mode_t); va_end(more); m; })
int open(const char *path, int flags, ...) { return opened(REAL(open), path, flags, MODE(flags)); }
int open64(const char *path, int flags, ...) { return opened(REAL(open64), path, flags, MODE(flags)); }

static ssize_t written(int fd, const void *data, size_t n, off_t at, int moves) {
  char path[4096];
  int watched = path_of(fd, path, sizeof path);
  if (watched && moves) at = fcntl(fd, F_GETFL) & O_APPEND ? lseek(fd, 0, SEEK_END) : lseek(fd, 0, SEEK_CUR);
  RECORDED(watched, moves ? REAL(write)(fd, data, n) : REAL(pwrite)(fd, data, n, at),
           enter('W', inode_of(fd), at, NULL, data, result));
}

ssize_t write(int fd, const void *data, size_t n) { return written(fd, data, n, 0, 1); }
ssize_t pwrite(int fd, const void *data, size_t n, off_t at) { return written(fd, data, n, at, 0); }
ssize_t pwrite64(int fd, const void *data, size_t n, off64_t at) { return written(fd, data, n, at, 0); }
ssize_t writev(int fd, const struct iovec *parts, int count) {
  char path[4096];
  if (!path_of(fd, path, sizeof path)) return REAL(writev)(fd, parts, count);
  ssize_t all = 0;
  for (int i = 0; i < count; i++) {
    ssize_t n = write(fd, parts[i].iov_base, parts[i].iov_len);
    if (n < 0) return all ? all : n;
    all += n;
    if ((size_t)n < parts[i].iov_len) break;
  }
  return all;
}

static int truncated(int fd, off_t size) {
  char path[4096];
  RECORDED(path_of(fd, path, sizeof path), REAL(ftruncate)(fd, size), enter('T', inode_of(fd), size, NULL, NULL, 0));
}

int ftruncate(int fd, off_t size) { return truncated(fd, size); }
int ftruncate64(int fd, off64_t size) { return truncated(fd, size); }

static int synced(int (*really)(int), int fd) {
  char path[4096];
  RECORDED(path_of(fd, path, sizeof path), really(fd), enter('S', inode_of(fd), 0, path, NULL, 0));
}

int fsync(int fd) { return synced(REAL(fsync), fd); }
int fdatasync(int fd) { return synced(REAL(fdatasync), fd); }

int rename(const char *from, const char *to) {
  RECORDED(is_under(to), REAL(rename)(from, to), enter('R', 0, 0, from, to, strlen(to)));
}
int link(const char *from, const char *to) {
  RECORDED(is_under(to), REAL(link)(from, to), enter('L', 0, 0, from, to, strlen(to)));
}
int linkat(int from_folder, const char *from, int to_folder, const char *to, int flags) {
  RECORDED(is_under(to), REAL(linkat)(from_folder, from, to_folder, to, flags),
           enter('L', 0, 0, from, to, strlen(to)));
}
int unlink(const char *path) {
  RECORDED(is_under(path), REAL(unlink)(path), enter('U', 0, 0, path, NULL, 0));
}
int mkdir(const char *path, mode_t mode) {
  RECORDED(is_under(path), REAL(mkdir)(path, mode), enter('M', 0, 0, path, NULL, 0));
}
