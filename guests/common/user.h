/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A program at CPL 3. Its pages must have PT_USER at every level, so they live outside of the
 * identity map's PML4 slot.
 *
 * The program calls the kernel by int 0x80: RAX = number, RDI, RSI, RDX = arguments, result in RAX.
 * SYS_EXIT (0) ends enter_user(); other numbers go to the handler. One program at a time;
 * exceptions go to the handlers of idt.h.
 */
#ifndef USER_H
#define USER_H

#include "idt.h"

#define SYS_EXIT 0

typedef u64 (*syscall_handler)(u64 number, u64 a, u64 b, u64 c);

/*
 * Run the code at `rip` with `arg` in RDI until it exits; returns the value it exits with (RDI of
 * SYS_EXIT).
 */
u64 enter_user(u64 rip, u64 rsp, u64 arg, syscall_handler handler);

/* Used by the program itself. */
static inline u64 syscall3(u64 number, u64 a, u64 b, u64 c)
{
	__asm__ volatile("int $0x80" : "+a"(number) : "D"(a), "S"(b), "d"(c) : "memory");
	return number;
}

#endif
