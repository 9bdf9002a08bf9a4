/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Says hello and prints the words of its command line, one per line; the checksum is of these words. */
#include "guest.h"

int main(int argc, char **argv)
{
	u64 checksum = 0;

	printf("Hello from a guest in long mode.\n");
	for (int i = 1; i < argc; i++) {
		printf("argv[%d] = %s\n", i, argv[i]);
		for (const char *c = argv[i]; *c; c++)
			checksum = checksum_add(checksum, (u8)*c);
	}
	finish(checksum, true);
}
