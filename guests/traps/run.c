/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Running one case and judging its events. */
#include "traps.h"

struct event events[MAX_EVENTS];
u64 nr_events, case_flags, max_events;
void (*event_hook)(struct frame *frame);

static const struct {
	u16 cs, ss, ds;
} selectors[] = {
	[K64] = { S_KCODE, S_KDATA, S_KDATA },	 [U64] = { S_UCODE, S_UDATA, S_UDATA },
	[K32] = { S_KCODE32, S_KDATA, S_KDATA }, [U32] = { S_UCODE32, S_UDATA, S_UDATA },
	[U16] = { S_UCODE16, S_UDATA, S_UDATA },
};

static bool is_trap(u64 vector)
{
	return vector == DB || vector == NMI || vector == BP || vector == OF || vector >= 32;
}

void on_event(struct frame *frame)
{
	struct event *event = &events[nr_events++];

	*event = (struct event){
		.vector = frame->vector, .error = frame->error, .rip = frame->rip, .cs = frame->cs,
		.rflags = frame->rflags, .rsp = frame->rsp, .ss = frame->ss, .cr2 = get_cr2(),
		.top = (u64)(frame + 1), .rax = frame->rax, .rcx = frame->rcx, .rdx = frame->rdx,
		.r11 = frame->r11,
	};
	if (frame->vector == DB) {
		event->dr6 = get_dr6();
		set_dr6(DR6_RESET);
	}
	if (event_hook)
		event_hook(frame);
	if (frame->vector == DONE || !is_trap(event->vector) || nr_events >= max_events)
		leave_case();
}

void run_code(enum mode mode, const u8 *code)
{
	struct context context = {
		.rip = (u64)code,
		.cs = selectors[mode].cs,
		.rflags = case_flags | 2,
		.rsp = (u64)(case_stack + STACK_SIZE - 256),
		.ss = selectors[mode].ss,
		.ds = selectors[mode].ds,
	};

	nr_events = 0;
	enter_case(&context);
}
