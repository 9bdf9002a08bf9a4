/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "probe.h"

#include "guest.h"

#define RFLAGS_FIXED 2u
#define CR4_PKE (1u << 22)
#define MSR_EFER 0xc0000080u

extern u8 _user_start[], probe_user_stub[], probe_done[];

u64 probe_kernel(u64 address, u64 kind, u64 value, u64 rflags);
u64 probe_user(u64 address, u64 kind, u64 value, u64 rflags, u64 rip, u64 rsp);

void probe_load(u64 value, u64 what);

static u8 trap_stack[2 * PAGE_SIZE] __attribute__((aligned(16)));
static u64 user_rip, user_rsp;
static struct probed result;
static bool probing;

/* Leaves the access for good: back in the kernel, at the end of the probe, which knows its stack. */
static void leave(struct trap_frame *frame)
{
	frame->rip = (u64)probe_done;
	frame->cs = KERNEL_CS;
	frame->ss = KERNEL_DS;
	frame->rsp = (u64)trap_stack + sizeof(trap_stack);
	frame->rflags = RFLAGS_FIXED;
}

/* Outside of a probe an exception is a mistake that ends the guest. */
static void on_exception(struct trap_frame *frame)
{
	if (!probing)
		unexpected_trap(frame);
	result.vector = frame->vector;
	result.error = frame->error_code;
	result.cr2 = frame->vector == VECTOR_PF ? read_cr2() : 0;
	leave(frame);
}

/* RAX stays for probe_done's caller. */
static void on_call(struct trap_frame *frame)
{
	leave(frame);
}

void probe_init(u64 user, u64 rsp)
{
	user_rip = user + (u64)(probe_user_stub - _user_start);
	user_rsp = rsp;
	set_rsp0((u64)trap_stack + sizeof(trap_stack));
	set_handler(VECTOR_UD, on_exception);
	set_handler(VECTOR_GP, on_exception);
	set_handler(VECTOR_SS, on_exception);
	set_handler(VECTOR_PF, on_exception);
	set_handler(VECTOR_SYSCALL, on_call);
}

const struct probed *probe(u64 address, int kind, bool user, bool ac, u32 value)
{
	u32 rflags = ac ? RFLAGS_FIXED | RFLAGS_AC : RFLAGS_FIXED;

	result.vector = NONE;
	probing = true;
	result.value = user ? probe_user(address, (u64)kind, value, rflags, user_rip, user_rsp) :
			      probe_kernel(address, (u64)kind, value, rflags);
	probing = false;
	return &result;
}

void probe_control(enum control what, u64 value)
{
	result.vector = NONE;
	probing = true;
	probe_load(value, what);
	probing = false;
}

static u64 read_pkru(void)
{
	u32 value, edx;

	__asm__ volatile(".byte 0x0f, 0x01, 0xee" : "=a"(value), "=d"(edx) : "c"(0));
	return value;
}

u64 read_control(enum control what)
{
	u64 value, cr4;
	u32 low, high;

	__asm__ volatile("mov %%cr4, %0" : "=r"(cr4));
	switch (what) {
	case CONTROL_CR0:
		__asm__ volatile("mov %%cr0, %0" : "=r"(value));
		return value;
	case CONTROL_CR3:
		return read_cr3();
	case CONTROL_CR4:
		return cr4;
	case CONTROL_EFER:
		__asm__ volatile("rdmsr" : "=a"(low), "=d"(high) : "c"(MSR_EFER));
		return (u64)high << 32 | low;
	default:
		return cr4 & CR4_PKE ? read_pkru() : 0;
	}
}

const struct probed *probe_result(void)
{
	return &result;
}
