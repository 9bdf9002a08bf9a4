/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "attempt.h"

#include "cpu.h"
#include "idt.h"
#include "selectors.h"

#define TRAP_STACK_SIZE 4096
#define EFLAGS_FIXED 2u
#define EFLAGS_AC (1u << 18)
#define LDT_LIMIT 15u

extern const u8 _user_start[], attempt_stub[];
extern u64 gdt[];

u32 attempt_kernel(u32 address, u32 kind, u32 value, u32 eflags);
u32 attempt_user(u32 address, u32 kind, u32 value, u32 eflags, u32 eip, u32 esp);
u32 attempt_cr(u32 value, u32 unused, u32 number);
void attempt_done(void);

static u8 trap_stack[TRAP_STACK_SIZE] __attribute__((aligned(16)));
static u32 user_eip, user_esp;
static struct attempt result;

/* Leaves the access for good: attempt_done knows its stack. */
static void leave(u32 value)
{
	__asm__ volatile("jmp attempt_done" : : "a"(value));
	__builtin_unreachable();
}

static void on_exception(struct trap_frame *frame)
{
	result.vector = frame->vector;
	result.error = frame->error;
	result.cr2 = frame->vector == TRAP_PF ? read_cr2() : 0;
	leave(0);
}

static void on_call(struct trap_frame *frame)
{
	leave(frame->eax);
}

void attempt_init(void)
{
	set_handler(TRAP_GP, on_exception);
	set_handler(TRAP_PF, on_exception);
	set_handler(TRAP_CALL, on_call);
	tss_init((u32)(trap_stack + TRAP_STACK_SIZE));
}

void attempt_at(u32 user, u32 esp, u32 ldt)
{
	user_eip = user + (u32)(attempt_stub - _user_start);
	user_esp = esp;
	gdt[SPARE_CODE / 8] = (u64)(ldt >> 24) << 56 | 0x82ull << 40 | (u64)(ldt & 0xffffff) << 16 | LDT_LIMIT;
	__asm__ volatile("lldt %w0" : : "r"(SPARE_CODE));
}

const struct attempt *attempt(u32 address, enum kind kind, bool user, bool ac, u32 value)
{
	u32 eflags = ac ? EFLAGS_FIXED | EFLAGS_AC : EFLAGS_FIXED;

	result.vector = NONE;
	result.value = user ? attempt_user(address, kind, value, eflags, user_eip, user_esp) :
			      attempt_kernel(address, kind, value, eflags);
	return &result;
}

static bool refused(u32 value, u32 number)
{
	result.vector = NONE;
	attempt_cr(value, 0, number);
	return result.vector == TRAP_GP && !result.error;
}

bool cr3_refused(u32 value)
{
	return refused(value, 3);
}

bool cr0_refused(u32 value)
{
	return refused(value, 0);
}

bool cr4_refused(u32 value)
{
	return refused(value, 4);
}
