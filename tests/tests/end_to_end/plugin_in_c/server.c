/*
  Drives the plugin through the headers of the server, in the server's place:

    server PLUGIN BROKER_SOCKET KEYFILE_DIR [short]

  Ends with 0 if everything is as it must be. Each buffer lies on the heap and has no byte more than
  the headers promise, so that a memory checker sees every step beyond. With `short`, one buffer has
  a byte less: then it must see that.
*/

#define _GNU_SOURCE
#include <my_global.h>
#include <mysql/plugin_encryption.h>

#include <dlfcn.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define CHECK(condition)                                                       \
  do {                                                                         \
    if (!(condition)) {                                                        \
      fprintf(stderr, "line %d: not so: %s\n", __LINE__, #condition);          \
      exit(1);                                                                 \
    }                                                                          \
  } while (0)

typedef unsigned char byte;
typedef unsigned int uint32;

enum { CBC = 1, CTR = 2, THREADS = 8, IV_BYTES = 16, OLDEST_STATUS_BUFFER = 1024 };

/* What the plugin looks up in the server. */

static __thread char statement;
static __thread int in_statement;
static int messages;

void *_current_thd(void) { return in_statement ? &statement : NULL; }

/* Freed at the end of the statement. */
static __thread struct memory {
  struct memory *earlier;
  max_align_t content[];
} *of_statement;

void *thd_alloc(MYSQL_THD thd, size_t bytes) {
  struct memory *memory = malloc(sizeof *memory + bytes);
  CHECK((void *)thd == &statement && memory);
  memory->earlier = of_statement;
  of_statement = memory;
  return memory->content;
}

static void end_statement(void) {
  while (of_statement) {
    struct memory *earlier = of_statement->earlier;
    free(of_statement);
    of_statement = earlier;
  }
}

void my_printf_error(unsigned int error, const char *format, unsigned long flags, ...) {
  char text[512];
  va_list arguments;
  va_start(arguments, flags);
  CHECK(vsnprintf(text, sizeof text, format, arguments) < (int)sizeof text);
  va_end(arguments);
  CHECK(strncmp(text, "AWS KMS plugin: ", 16) == 0);
  __atomic_add_fetch(&messages, 1, __ATOMIC_RELAXED);
  fprintf(stderr, "%u %lu %s\n", error, flags, text);
}

/* Through it the header's own functions call the plugin, as in the server. */
struct encryption_service_st encryption_handler;

/* System variables. */

static DECLARE_MYSQL_SYSVAR_BASIC(string, char *);
static DECLARE_MYSQL_SYSVAR_SIMPLE(integer, int);
static DECLARE_MYSQL_SYSVAR_TYPELIB(enumeration, unsigned long);
typedef __typeof__(mysql_sysvar_string) string_variable;
typedef __typeof__(mysql_sysvar_integer) integer_variable;
typedef __typeof__(mysql_sysvar_enumeration) enumeration_variable;

static struct st_maria_plugin *plugin;

static void *variable(const char *name) {
  struct st_mysql_sys_var **entry = plugin->system_vars;
  while (*entry && strcmp(((string_variable *)*entry)->name, name) != 0)
    entry++;
  CHECK(*entry);
  return *entry;
}

static void set_defaults(void) {
  for (struct st_mysql_sys_var **entry = plugin->system_vars; *entry; entry++) {
    string_variable *text = (string_variable *)*entry;
    integer_variable *number = (integer_variable *)*entry;
    enumeration_variable *choice = (enumeration_variable *)*entry;
    switch (text->flags & 0x7f) {
    case PLUGIN_VAR_STR: *text->value = (char *)text->def_val; break;
    case PLUGIN_VAR_INT: *number->value = number->def_val; break;
    case PLUGIN_VAR_ENUM: *choice->value = choice->def_val; break;
    default: CHECK(!"a variable of another type");
    }
  }
}

static void set_option(const char *name, char *value) { *((string_variable *)variable(name))->value = value; }

static void set_string(const char *name, const char *value) {
  string_variable *target = variable(name);
  char *of_statement = strdup(value);
  target->update(NULL, (struct st_mysql_sys_var *)target, target->value, &of_statement);
  free(of_statement);
  CHECK(strcmp(*target->value, value) == 0);
}

static void set_choice(const char *name, unsigned long index) {
  enumeration_variable *target = variable(name);
  target->update(NULL, (struct st_mysql_sys_var *)target, target->value, &index);
  CHECK(*target->value == index);
}

/* The right side of SET GLOBAL aws_key_management_rotate_key = number. */
struct right_side {
  struct st_mysql_value value;
  long long number;
  int is_unsigned;
};

static int value_type(struct st_mysql_value *value) { return MYSQL_VALUE_TYPE_INT; }

static int value_integer(struct st_mysql_value *value, long long *number) {
  *number = ((struct right_side *)value)->number;
  return 0;
}

static int value_is_unsigned(struct st_mysql_value *value) {
  return ((struct right_side *)value)->is_unsigned;
}

/* Returns whether the number is refused. */
static int rotate_checks(double *save, long long number, int is_unsigned) {
  struct right_side right = {
      {.value_type = value_type, .val_int = value_integer, .is_unsigned = value_is_unsigned}, number, is_unsigned};
  integer_variable *target = variable("rotate_key");
  return target->check(NULL, (struct st_mysql_sys_var *)target, save, &right.value);
}

static void rotate(long long number) {
  integer_variable *target = variable("rotate_key");
  struct st_mysql_sys_var *opaque = (struct st_mysql_sys_var *)target;
  double *save = malloc(sizeof *save);
  CHECK(rotate_checks(save, ~0ULL, 1) != 0); /* has the bits of -1 */
  CHECK(rotate_checks(save, number, 0) == 0);
  target->update(NULL, opaque, target->value, save);
  free(save);
  CHECK(*target->value == 0);
}

/* Keys. */

static byte *get_key(uint32 id, uint32 version, uint32 *length) {
  CHECK(encryption_key_get(id, version, NULL, length) == 0);
  byte *key = malloc(*length);
  uint32 room = *length - 1;
  CHECK(encryption_key_get(id, version, key, &room) == ENCRYPTION_KEY_BUFFER_TOO_SMALL);
  CHECK(room == *length);
  CHECK(encryption_key_get(id, version, key, &room) == 0);
  return key;
}

/* Encryption and decryption. */

struct work {
  uint32 id, version;
  int flags;
  byte *key, *iv;
  uint32 key_bytes;
};

static byte *heap_copy(const void *data, size_t bytes) {
  byte *copy = malloc(bytes);
  if (bytes)
    memcpy(copy, data, bytes);
  return copy;
}

/* Without alloca, at an address of any alignment, ending where the memory ends. */
static uint32 crypt_in_pieces(const struct work *work, const byte *source, uint32 bytes, byte *destination,
                              uint32 piece, uint32 misalignment) {
  byte *memory = malloc(encryption_ctx_size(work->id, work->version) + misalignment);
  void *context = memory + misalignment;
  uint32 written, total = 0;
  CHECK(encryption_ctx_init(context, work->key, work->key_bytes, work->iv, IV_BYTES, work->flags, work->id,
                            work->version) == 0);
  for (uint32 done = 0; done < bytes; done += piece) {
    uint32 now = bytes - done < piece ? bytes - done : piece;
    CHECK(encryption_ctx_update(context, source + done, now, destination + total, &written) == 0);
    total += written;
  }
  CHECK(encryption_ctx_finish(context, destination + total, &written) == 0);
  free(memory);
  return total + written;
}

static void round_trip(struct work work, uint32 bytes, uint32 piece, uint32 misalignment) {
  byte *data = malloc(bytes);
  for (uint32 i = 0; i < bytes; i++)
    data[i] = (byte)(i * 7 + bytes);
  int padded = !(work.flags & ENCRYPTION_FLAG_NOPAD);
  uint32 length = padded ? encryption_encrypted_length(bytes, work.id, work.version) : bytes;
  byte *encrypted = malloc(length), *again = malloc(length), *decrypted = malloc(bytes);
  uint32 written;

  work.flags |= ENCRYPTION_FLAG_ENCRYPT;
  CHECK(encryption_crypt(data, bytes, encrypted, &written, work.key, work.key_bytes, work.iv, IV_BYTES,
                         work.flags, work.id, work.version) == 0);
  CHECK(written == length);
  CHECK(crypt_in_pieces(&work, data, bytes, again, piece, misalignment) == length);
  CHECK(memcmp(encrypted, again, length) == 0);

  work.flags &= ~ENCRYPTION_FLAG_ENCRYPT;
  CHECK(encryption_crypt(encrypted, length, decrypted, &written, work.key, work.key_bytes, work.iv, IV_BYTES,
                         work.flags, work.id, work.version) == 0);
  CHECK(written == bytes && memcmp(decrypted, data, bytes) == 0);
  free(data);
  free(encrypted);
  free(again);
  free(decrypted);
}

/* As the redo log has it: the result where the data were, piece by piece; and beside them. */
static void in_place(struct work work, uint32 bytes, uint32 piece, uint32 distance) {
  byte *data = malloc(bytes), *expected = malloc(bytes), *region = malloc(bytes + distance);
  memset(data, 0x5a, bytes);
  work.flags = ENCRYPTION_FLAG_NOPAD | ENCRYPTION_FLAG_ENCRYPT;
  CHECK(crypt_in_pieces(&work, data, bytes, expected, bytes, 0) == bytes);

  memcpy(region, data, bytes);
  CHECK(crypt_in_pieces(&work, region, bytes, region, piece, 3) == bytes);
  CHECK(memcmp(region, expected, bytes) == 0);
  memcpy(region + distance, data, bytes);
  CHECK(crypt_in_pieces(&work, region + distance, bytes, region, bytes, 5) == bytes);
  CHECK(memcmp(region, expected, bytes) == 0);
  memcpy(region, data, bytes);
  CHECK(crypt_in_pieces(&work, region, bytes, region + distance, bytes, 7) == bytes);
  CHECK(memcmp(region + distance, expected, bytes) == 0);
  free(data);
  free(expected);
  free(region);
}

static void wrong_calls(struct work work) {
  byte *context = malloc(encryption_ctx_size(work.id, work.version));
  byte *source = heap_copy("too short to be so", 15), *destination = malloc(16);
  uint32 written = 99;
  CHECK(encryption_ctx_init(context, work.key, 15, work.iv, IV_BYTES, 0, work.id, work.version) != 0);
  CHECK(encryption_ctx_init(context, work.key, work.key_bytes, work.iv, 12, 0, work.id, work.version) != 0);
  CHECK(encryption_ctx_update(context, source, 15, destination, &written) != 0 && written == 0);
  /* Padded data are never 15 bytes long; whoever finds out goes without finish. */
  CHECK(encryption_crypt(source, 15, destination, &written, work.key, work.key_bytes, work.iv, IV_BYTES, 0,
                         work.id, work.version) != 0);
  /* Given up in the middle. */
  CHECK(encryption_ctx_init(context, work.key, work.key_bytes, work.iv, IV_BYTES, ENCRYPTION_FLAG_ENCRYPT,
                            work.id, work.version) == 0);
  CHECK(encryption_ctx_update(context, source, 15, destination, &written) == 0);
  free(context);
  free(source);
  free(destination);
}

/* All lengths up to the longest, and that of a page and more. */
static void ciphers(uint32 id, uint32 version, uint32 longest, uint32 page) {
  static const byte iv[IV_BYTES] = "sixteen bytes IV";
  static const int paddings[] = {0, ENCRYPTION_FLAG_NOPAD};
  struct work work = {.id = id, .version = version, .iv = heap_copy(iv, sizeof iv)};
  work.key = get_key(id, version, &work.key_bytes);
  for (int padding = 0; padding < 2; padding++) {
    work.flags = paddings[padding];
    for (uint32 bytes = 0; bytes <= longest; bytes++)
      round_trip(work, bytes, 1 + bytes % 37, bytes % 17);
    round_trip(work, page, page, 1);
    round_trip(work, page + 5, page / 3, 2);
  }
  for (uint32 bytes = 1; bytes <= longest; bytes++)
    in_place(work, bytes, 1 + bytes % 37, 1 + bytes % 40);
  wrong_calls(work);
  free(work.key);
  free(work.iv);
}

static void *work_in_thread(void *number) {
  uint32 id = 10 + *(uint32 *)number / 2;
  /* Two threads want the same new key. */
  uint32 version = encryption_key_get_latest_version(id);
  CHECK(version != ENCRYPTION_KEY_VERSION_INVALID);
  ciphers(1, CBC, 16, 64);
  ciphers(3, CTR, 16, 64);
  ciphers(id, version, 16, 64);
  return NULL;
}

static void many_threads(void) {
  pthread_t threads[THREADS];
  uint32 numbers[THREADS];
  for (uint32 i = 0; i < THREADS; i++) {
    numbers[i] = i;
    CHECK(pthread_create(&threads[i], NULL, work_in_thread, &numbers[i]) == 0);
  }
  rotate(2);
  for (uint32 i = 0; i < THREADS; i++)
    CHECK(pthread_join(threads[i], NULL) == 0);
}

static void show_value(const char *name, struct st_mysql_show_var value) {
  if (value.type == SHOW_CHAR)
    fprintf(stderr, "%s%s: %s\n", name, value.name, (char *)value.value);
  else {
    CHECK(value.type == SHOW_ULONGLONG);
    fprintf(stderr, "%s%s: %llu\n", name, value.name, *(unsigned long long *)value.value);
  }
}

static void show_status(void) {
  int shown = 0, of_keys = 0;
  for (struct st_mysql_show_var *status = plugin->status_vars; status->name; status++, shown++) {
    struct st_mysql_show_var value = {.name = status->name};
    char *buffer = malloc(OLDEST_STATUS_BUFFER);
    /* As performance_schema.status_by_thread passes it. */
    MYSQL_THD another_connection = (MYSQL_THD)buffer;
    CHECK(status->type == SHOW_SIMPLE_FUNC || status->type == SHOW_FUNC);
    CHECK(((mysql_show_var_func)status->value)(another_connection, &value, buffer, NULL, SHOW_OPT_GLOBAL) == 0);
    if (value.type == SHOW_ARRAY) {
      /* Of each key, under a name of its own. */
      CHECK(status->type == SHOW_FUNC);
      for (struct st_mysql_show_var *of_key = (void *)value.value; of_key->name; of_key++, of_keys++)
        show_value(status->name, *of_key);
    } else
      show_value("", value);
    free(buffer);
  }
  end_statement();
  CHECK(shown >= 11 && of_keys >= 9);
}

static void fill_handler(void) {
  struct st_mariadb_encryption *info = plugin->info;
  CHECK(info->interface_version >> 8 == MariaDB_ENCRYPTION_INTERFACE_VERSION >> 8);
  encryption_handler = (struct encryption_service_st){
      info->get_latest_key_version, info->get_key,          info->crypt_ctx_size,  info->crypt_ctx_init,
      info->crypt_ctx_update,       info->crypt_ctx_finish, info->encrypted_length};
}

/* INSTALL: loads the library, sets the variables, initialises. */
static void *install(char **arguments) {
  void *library = dlopen(arguments[1], RTLD_NOW);
  if (!library)
    fprintf(stderr, "%s\n", dlerror());
  CHECK(library);
  int *interface = dlsym(library, "_maria_plugin_interface_version_");
  int *declaration_bytes = dlsym(library, "_maria_sizeof_struct_st_plugin_");
  plugin = dlsym(library, "_maria_plugin_declarations_");
  CHECK(*interface >> 8 == MARIA_PLUGIN_INTERFACE_VERSION >> 8);
  CHECK(*declaration_bytes == sizeof *plugin && plugin[1].info == NULL);
  set_defaults();
  set_option("broker_socket", arguments[2]);
  set_option("keyfile_dir", arguments[3]);
  fill_handler();
  CHECK(plugin->init(NULL) == 0);
  return library;
}

/* UNINSTALL, while a thread may still ask. */
static void uninstall(void *library) {
  CHECK(plugin->deinit(NULL) == 0);
  uint32 length;
  CHECK(encryption_key_get_latest_version(1) == ENCRYPTION_KEY_VERSION_INVALID);
  CHECK(encryption_key_get(1, 1, NULL, &length) == ENCRYPTION_KEY_VERSION_INVALID);
  CHECK(dlclose(library) == 0);
}

static void short_buffer(void) {
  uint32 key_bytes, written;
  byte *key = get_key(1, CBC, &key_bytes), *iv = malloc(IV_BYTES), *data = malloc(64), *destination = malloc(63);
  memset(iv, 1, IV_BYTES);
  memset(data, 2, 64);
  CHECK(encryption_crypt(data, 64, destination, &written, key, key_bytes, iv, IV_BYTES,
                         ENCRYPTION_FLAG_ENCRYPT | ENCRYPTION_FLAG_NOPAD, 1, CBC) == 0);
  free(key);
  free(iv);
  free(data);
  free(destination);
}

int main(int argc, char **argv) {
  CHECK(argc >= 4);
  CHECK(chdir(argv[3]) == 0); /* the data directory, as it is for a server */
  void *library = install(argv);
  in_statement = 1;
  int before = messages;
  CHECK(encryption_key_get_latest_version(1) == ENCRYPTION_KEY_VERSION_INVALID); /* no master key */
  CHECK(messages == before + 2); /* in the log, and to the client */
  set_string("master_key_id", "alias/missing");
  CHECK(encryption_key_get_latest_version(4) == ENCRYPTION_KEY_VERSION_INVALID);
  set_string("master_key_id", "alias/mariadb");
  CHECK(encryption_key_get_latest_version(1) == 1 && encryption_key_get_latest_version(2) == 1);
  set_choice("encryption_algorithm", 1);
  set_choice("key_spec", 1);
  CHECK(encryption_key_get_latest_version(3) == CTR);
  rotate(1);
  CHECK(encryption_key_get_latest_version(1) == 2); /* never AES_CTR */
  uint32 length;
  CHECK(encryption_key_get(1, 99, NULL, &length) == ENCRYPTION_KEY_VERSION_INVALID);
  if (argc > 4) {
    short_buffer();
    return 0;
  }
  ciphers(1, CBC, 70, 4096);
  ciphers(3, CTR, 70, 4096);
  many_threads();
  rotate(-1);
  CHECK(encryption_key_get_latest_version(1) == 3);
  CHECK(encryption_key_get_latest_version(2) == 3);
  CHECK(encryption_key_get_latest_version(3) == CTR + 1);
  show_status();
  uninstall(library);
  library = install(argv);
  CHECK(encryption_key_get_latest_version(2) == 3);
  uninstall(library);
  fprintf(stderr, "all is as it must be\n");
  return 0;
}
