/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The loops over events: interrupts, system calls, instructions that leave a virtual machine. */
#ifndef EVENTS_H
#define EVENTS_H

#include "guest.h"

#define MARK_PORT 0x80
#define USER_CODE FIRST_GVA
#define USER_STACK (FIRST_GVA + 2 * PAGE_SIZE)

extern u8 _user_start[];
extern u64 interrupts_taken, syscalls_taken;

/* The local APIC on, and a gate for its interrupts. */
void interrupt_setup(void);
/* Each sends one to itself and waits for it. */
void ipi_loop(u64 count);
/* Each arms the timer with the smallest count and waits for it. */
void timer_loop(u64 count);

/* SYSCALL on. The program at USER_CODE must be mapped. */
void syscall_setup(void);
void syscall_loop(u64 count);

void input_loop(u64 count);
void cpuid_loop(u64 count);

#endif
