/* What a measurement was made on, and by what. */
#ifndef LEAN_LAUNCH_BENCH_MACHINE_H
#define LEAN_LAUNCH_BENCH_MACHINE_H

struct json_object; /* json-c; the caller owns what is returned */

/* {"name", "cpu", "cores", "memory_bytes", "kernel", "os"}; null where it cannot be told */
struct json_object *machine_host(void);
/* {"version", "commit", "compiler"} */
struct json_object *machine_build(void);
/* "2026-11-22T15:42:41Z" */
struct json_object *machine_time(void);

#endif
