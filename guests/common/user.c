/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "user.h"

u64 user_switch(u64 rip, u64 rsp, u64 arg, u64 *saved_rsp);
_Noreturn void user_return(u64 value, u64 saved_rsp);

static u64 kernel_rsp;
static syscall_handler handle_syscall;

static void on_syscall(struct trap_frame *frame)
{
	if (frame->rax == SYS_EXIT)
		user_return(frame->rdi, kernel_rsp);
	frame->rax = handle_syscall(frame->rax, frame->rdi, frame->rsi, frame->rdx);
}

u64 enter_user(u64 rip, u64 rsp, u64 arg, syscall_handler handler)
{
	static u8 trap_stack[2 * PAGE_SIZE] __attribute__((aligned(16)));

	handle_syscall = handler;
	set_handler(VECTOR_SYSCALL, on_syscall);
	set_rsp0((u64)(trap_stack + sizeof(trap_stack)));
	return user_switch(rip, rsp, arg, &kernel_rsp);
}
