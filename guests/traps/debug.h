/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What debug.c and watch.c share: DR7's fields, and a look at the #DBs of the log one after the other. */
#ifndef DEBUG_H
#define DEBUG_H

#include "traps.h"

#define DR7_ENABLE(n) (1UL << (2 * (n)))
#define DR7_GLOBAL(n) (2UL << (2 * (n)))
#define DR7_TYPE(n, type, length) (((type) | (u64)(length) << 2) << (16 + 4 * (n)))
#define EXECUTE 0
#define WRITE 1
#define PORT_IO 2
#define ACCESS 3
#define LENGTH_1 0
#define LENGTH_2 1
#define LENGTH_8 2
#define LENGTH_4 3

extern u64 at_event;

void breakpoint(int n, u64 address, u64 type, u64 length);
/* The next event of the log is #DB with these bits in DR6, at this RIP. */
bool expect_db(u64 dr6, const u8 *rip);
/* The event after those is the end of the case. */
void expect_done(void);
/* Look at the log from its beginning; the code starts with TF. */
void start_step(void);

#endif
