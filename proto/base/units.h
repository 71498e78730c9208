/* Amounts as people write them: the reading side of log_format_bytes and log_format_seconds.
 *
 *   bytes    4096, 64M, 1.5GiB   units are binary whatever their spelling: K, KB and KiB are 1024
 *   seconds  30s, 150ms, 2.5, 1h02m, 3m07s   a bare number is seconds */
#ifndef LEAN_PROTO_BASE_UNITS_H
#define LEAN_PROTO_BASE_UNITS_H

#include <stdbool.h>
#include <stdint.h>

/* False when text is not an amount, is negative or does not fit; *out is then unchanged. */
bool units_parse_bytes(const char *text, uint64_t *out);
bool units_parse_seconds(const char *text, double *out);

#endif
