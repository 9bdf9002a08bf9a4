/* SPDX-License-Identifier: GPL-2.0-or-later */
/* One access of any kind at CPL 0 or 3, and the exception that it takes. */
#ifndef ATTEMPT_H
#define ATTEMPT_H

#include "../access64/oracle.h"

#define NONE 0xffffffffu

/* vector: NONE if none; error: its code; cr2: of a page fault; value: what was read. */
struct attempt {
	u32 vector, error, cr2, value;
};

/* Takes #GP, #PF, int 0x80 and TR. */
void attempt_init(void);

/* Where _user_start is mapped for CPL 3, a stack there, and the two descriptors of the LDT. */
void attempt_at(u32 user, u32 esp, u32 ldt);

/*
 * `kind` at `address`; WRITE stores `value`, MODIFY adds it, FETCH calls what must be a RET, and a
 * descriptor is that of the selector `value`. The result is overwritten by the next.
 */
const struct attempt *attempt(u32 address, enum kind kind, bool user, bool ac, u32 value);

/* Load CR3, CR0 or CR4: true if that is #GP. */
bool cr3_refused(u32 value);
bool cr0_refused(u32 value);
bool cr4_refused(u32 value);

#endif
