/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Traps: vectors 0-31, and 0x80 which CPL 3 may call. One that nobody handles ends the guest. */
#ifndef IDT_H
#define IDT_H

#include "types.h"

#define TRAP_UD 6
#define TRAP_GP 13
#define TRAP_PF 14
#define TRAP_CALL 0x80

/* As trap.S pushes it; esp and ss are there only when the trap came from CPL 3. */
struct trap_frame {
	u32 edi, esi, ebp, unused, ebx, edx, ecx, eax;
	u32 vector, error, eip, cs, eflags, esp, ss;
};

typedef void (*trap_handler)(struct trap_frame *frame);

void idt_init(void);
void set_handler(u32 vector, trap_handler handler);

/* Load TR; a trap from CPL 3 begins on this stack. */
void tss_init(u32 esp0);

#endif
