/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "probe.h"

#include "boot.h"
#include "cpu.h"
#include "idt.h"

#define TRAP_STACK_SIZE 4096

extern const u8 _user_start[], probe_user_stub[];

u32 probe_kernel(u32 gva, u32 access);
u32 probe_user(u32 gva, u32 access, u32 eip, u32 esp);
_Noreturn void probe_leave(u32 result);

static u8 trap_stack[TRAP_STACK_SIZE] __attribute__((aligned(16)));
static u32 user_eip, user_esp, probed;

static void page_fault(struct trap_frame *frame)
{
	if (read_cr2() != probed)
		fail("#PF at 0x%x, error 0x%x, CR2 0x%x instead of 0x%x", frame->eip, frame->error, read_cr2(), probed);
	probe_leave(frame->error);
}

static void call_from_user(struct trap_frame *frame)
{
	(void)frame;
	probe_leave(NO_FAULT);
}

void probe_init(u32 user, u32 esp)
{
	user_eip = user + (u32)(probe_user_stub - _user_start);
	user_esp = esp;
	tss_init((u32)(trap_stack + TRAP_STACK_SIZE));
	set_handler(TRAP_PF, page_fault);
	set_handler(TRAP_CALL, call_from_user);
}

u32 probe(u32 gva, enum access access, bool from_user)
{
	probed = gva;
	return from_user ? probe_user(gva, access, user_eip, user_esp) : probe_kernel(gva, access);
}
