/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * `key=value` words of the command line.
 *
 * Values are decimal or 0x hexadecimal with an optional suffix k, M or G (powers of 1024). An
 * unknown key, a bad number or a value outside [min, max] ends the guest with a message and exit
 * value 2. Defaults are the DEFAULT_key macros that the build makes from guest.toml.
 */
#ifndef PARAMS_H
#define PARAMS_H

#include "types.h"

struct param {
	const char *key;
	u64 *value;
	u64 min, max;
};

/* True and the value, or false when `text` is no number of this form or does not fit in 64 bits. */
bool parse_size(const char *text, u64 *value);

void parse_params(int argc, char **argv, const struct param *params, size_t count);

#endif
