/* SPDX-License-Identifier: GPL-2.0-or-later */
/* One access at CPL 0 or 3, and the exception that it takes. */
#ifndef PROBE_H
#define PROBE_H

#include "oracle.h"

#define NONE 0xffffffffu
#define VECTOR_SS 12
#define RFLAGS_AC (1u << 18)

/* vector: NONE if none; error: its code; cr2: of a page fault; value: what was read. */
struct probed {
	u32 vector, error;
	u64 cr2, value;
};

/* Takes #GP, #SS, #PF and int 0x80. `user`: where _user_start is mapped for CPL 3; `rsp`: a stack there. */
void probe_init(u64 user, u64 rsp);

/*
 * `kind` at `address`; WRITE stores `value`, MODIFY adds it, FETCH calls what must be a RET, and a
 * descriptor is that of the selector `value`. `ac`: EFLAGS.AC during the access. The result is
 * overwritten by the next.
 */
const struct probed *probe(u64 address, int kind, bool user, bool ac, u32 value);

/* More kinds, for CPL 3 only: a push to `address`, a load with a base of RBP, and one with RBP under a GS prefix. */
enum { PUSH = KINDS, LOAD_RBP, LOAD_GS_RBP };

/*
 * MOV to a control register, WRMSR of EFER, and WRPKRU of a value whose upper half goes to EDX; the
 * last with ECX 1. What happened is in probe_result(), the registers as they are in read_control().
 */
enum control { CONTROL_CR0, CONTROL_CR3, CONTROL_CR4, CONTROL_EFER, CONTROL_PKRU, CONTROL_PKRU_ECX };
void probe_control(enum control what, u64 value);
u64 read_control(enum control what);
const struct probed *probe_result(void);

#endif
