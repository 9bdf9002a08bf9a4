/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Exceptions and int 0x80: GDT with user segments, TSS (RSP0, one IST stack for #DF), IDT, C
 * handlers.
 *
 * A handler gets the registers of the interrupted code and may change them; returning resumes
 * there. Without a handler an exception is printed and ends the guest with exit value 33.
 */
#ifndef IDT_H
#define IDT_H

#include "types.h"

#define VECTOR_UD 6
#define VECTOR_DF 8
#define VECTOR_GP 13
#define VECTOR_PF 14
#define VECTOR_SYSCALL 0x80
#define NR_EXCEPTIONS 32

#define KERNEL_CS 0x08
#define KERNEL_DS 0x10
#define USER_DS 0x1b
#define USER_CS 0x23
#define TSS_SELECTOR 0x28

#define PF_PRESENT 1
#define PF_WRITE 2
#define PF_USER 4
#define PF_FETCH 16

/* As trap.S pushes it, lowest address first. */
struct trap_frame {
	u64 r15, r14, r13, r12, r11, r10, r9, r8, rdi, rsi, rbp, rbx, rdx, rcx, rax;
	u64 vector, error_code;
	u64 rip, cs, rflags, rsp, ss;
};

typedef void (*trap_handler)(struct trap_frame *frame);

void idt_init(void);

/*
 * `vector` is an exception, VECTOR_SYSCALL or one of smp/irq.h; NULL brings the default back.
 */
void set_handler(u8 vector, trap_handler handler);

/* The stack on which exceptions from CPL 3 arrive. */
void set_rsp0(u64 rsp);

/* Print vector, error code, rip, cr2 and exit with 33. */
_Noreturn void unexpected_trap(const struct trap_frame *frame);

#endif
