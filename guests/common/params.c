/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "params.h"

#include "boot.h"
#include "string.h"

static int digit(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	if ((c | 0x20) >= 'a' && (c | 0x20) <= 'f')
		return (c | 0x20) - 'a' + 10;
	return 99;
}

static int suffix_shift(char c)
{
	switch (c) {
	case 'k':
	case 'K':
		return 10;
	case 'm':
	case 'M':
		return 20;
	case 'g':
	case 'G':
		return 30;
	default:
		return 0;
	}
}

bool parse_size(const char *text, u64 *value)
{
	bool hex = text[0] == '0' && text[1] == 'x';
	int base = hex ? 16 : 10, shift;
	const char *s = text + 2 * hex, *first = s;
	u64 n = 0;

	for (; digit(*s) < base; s++)
		if (__builtin_mul_overflow(n, (u64)base, &n) || __builtin_add_overflow(n, (u64)digit(*s), &n))
			return false;
	shift = suffix_shift(*s);
	if (s == first || s[shift != 0] || n > (~0UL >> shift))
		return false;
	*value = n << shift;
	return true;
}

static void parse_param(const char *word, const struct param *params, size_t count)
{
	for (const struct param *p = params; p < params + count; p++) {
		size_t n = strlen(p->key);

		if (strncmp(word, p->key, n) || word[n] != '=')
			continue;
		if (!parse_size(word + n + 1, p->value))
			usage("%s: not a number", word);
		if (*p->value < p->min || *p->value > p->max)
			usage("%s: outside %lu..%lu", word, p->min, p->max);
		return;
	}
	usage("unknown parameter: %s", word);
}

void parse_params(int argc, char **argv, const struct param *params, size_t count)
{
	for (int i = 1; i < argc; i++)
		parse_param(argv[i], params, count);
}
