/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What every case starts from, and how one runs. */
#include "traps32.h"

#define GATE 0x8e00
#define GATE_DPL3 0x6000
#define TSS_AVAILABLE 0x89
#define DR6_RESET 0xffff0ff0u
#define USER_ESP ((u32)(case_stack + STACK_SIZE - 128))
#define LOW_STACK 0x8000

extern const u8 event_stubs[];
void task_entry(void);

u64 own_gdt[GDT_ENTRIES] __attribute__((aligned(16)));
struct gate own_idt[256] __attribute__((aligned(16)));
struct tss own_tss, task_tss;
u8 case_stack[STACK_SIZE] __attribute__((aligned(16)));
u8 esp0_stack[STACK_SIZE] __attribute__((aligned(16)));
u8 task_stack[STACK_SIZE] __attribute__((aligned(16)));
u8 case_data[256] __attribute__((aligned(16)));
struct event events[MAX_EVENTS];
u32 nr_events, case_flags, max_events;
void (*event_hook)(struct frame *frame);

static const u64 gdt_start[GDT_ENTRIES] = {
	[S_KCODE / 8] = 0x00cf9b000000ffff,	  [S_KDATA / 8] = 0x00cf93000000ffff,
	[S_UCODE / 8] = 0x00cffb000000ffff,	  [S_UDATA / 8] = 0x00cff3000000ffff,
	[S_UCODE16 / 8] = 0x0000fb010000ffff,	  [S_ABSENT_DATA / 8] = 0x00cf13000000ffff,
	[S_ABSENT_CODE / 8] = 0x00cf1b000000ffff, [S_RODATA / 8] = 0x00cf91000000ffff,
	[S_XCODE / 8] = 0x00cf99000000ffff,	  [S_CONFORMING / 8] = 0x00cf9f000000ffff,
	[S_RING1_DATA / 8] = 0x00cfb3000000ffff,
};

u32 stub_of(u8 vector)
{
	return (u32)event_stubs + 32u * vector;
}

void set_gate(u8 vector, u32 offset, u16 selector, u16 type)
{
	own_idt[vector] = (struct gate){ (u16)offset, selector, type, (u16)(offset >> 16) };
}

void set_system(u16 selector, u32 base, u32 limit, u8 type)
{
	own_gdt[selector / 8] = (u64)(base >> 24) << 56 | (u64)type << 40 | (u64)(base & 0xffffff) << 16 | limit;
}

void load_tr(u16 selector)
{
	__asm__ volatile("ltr %w0" : : "r"(selector) : "memory");
}

static void reset_task(void)
{
	task_tss = (struct tss){
		.ss0 = S_KDATA, .esp0 = (u32)(esp0_stack + STACK_SIZE / 2), .eip = (u32)task_entry, .eflags = 2,
		.esp = (u32)(task_stack + STACK_SIZE), .es = S_KDATA, .cs = S_KCODE, .ss = S_KDATA, .ds = S_KDATA,
		.io_map = 104,
	};
	task_entries = 0;
}

void reset_state(void)
{
	struct {
		u16 limit;
		const void *base;
	} __attribute__((packed)) gdtr = { sizeof(own_gdt) - 1, own_gdt }, idtr = { sizeof(own_idt) - 1, own_idt };

	memcpy(own_gdt, gdt_start, sizeof(own_gdt));
	for (u32 vector = 0; vector < 256; vector++)
		set_gate((u8)vector, stub_of((u8)vector), S_KCODE, GATE);
	own_idt[BP].type |= GATE_DPL3;
	own_idt[OF].type |= GATE_DPL3;
	own_idt[DONE].type |= GATE_DPL3;
	own_idt[CALL].type |= GATE_DPL3;
	own_tss.esp0 = (u32)(esp0_stack + STACK_SIZE);
	own_tss.ss0 = S_KDATA;
	own_tss.io_map = (u16)offsetof(struct tss, map);
	memset(own_tss.map, 0xff, sizeof(own_tss.map));
	set_system(S_TSS, (u32)&own_tss, sizeof(own_tss) - 1, TSS_AVAILABLE);
	set_system(S_TASK, (u32)&task_tss, sizeof(task_tss) - 1, TSS_AVAILABLE);
	set_system(S_LDT, (u32)own_gdt, 31, 0x82);
	reset_task();
	__asm__ volatile("lgdt %0; lidt %1; lldt %w2" : : "m"(gdtr), "m"(idtr), "r"(0) : "memory");
	load_tr(S_TSS);
	__asm__ volatile("movl %0, %%dr6; movl %1, %%dr7" : : "r"(DR6_RESET), "r"(0x400));
	write_cr0(0x11);
	write_cr4(0);
}

static bool is_trap(u32 vector)
{
	return vector == DB || vector == BP || vector == OF || vector >= 32;
}

void on_event(struct frame *frame)
{
	struct event *event = &events[nr_events++];
	bool v86 = frame->eflags & FLAG_VM;

	*event = (struct event){
		.vector = frame->vector, .error = frame->error, .eip = frame->eip, .cs = frame->cs, .eflags = frame->eflags,
		.esp = frame->cs & 3 || v86 ? frame->esp : (u32)&frame->esp, .ss = frame->cs & 3 || v86 ? frame->ss : S_KDATA,
		.at = (u32)frame, .eax = frame->eax, .ecx = frame->ecx, .edx = frame->edx, .ds = frame->ds, .es = frame->es,
	};
	if (v86)
		memcpy(event->v86, &frame->v86_es, sizeof(event->v86));
	if (frame->vector == DB) {
		event->dr6 = get_dr6();
		__asm__ volatile("movl %0, %%dr6" : : "r"(DR6_RESET));
	}
	if (event_hook)
		event_hook(frame);
	if (frame->vector == DONE || !is_trap(event->vector) || nr_events >= max_events)
		leave_case();
}

void run_code(enum mode mode, const u8 *code, const u8 *end)
{
	struct context context = { (u32)code, S_KCODE, case_flags | 2, USER_ESP, S_KDATA, 0, S_KDATA };

	if (mode != K32) {
		context.cs = mode == U16 ? S_UCODE16 : S_UCODE;
		context.ss = context.ds = S_UDATA;
	}
	if (mode >= U16) {
		memcpy((void *)LOW_CODE, code, (u32)(end - code));
		context.eip = 0;
	}
	if (mode == V86) {
		context.eflags |= FLAG_VM;
		context.cs = LOW_CODE >> 4;
		context.ss = 0;
		context.esp = LOW_STACK;
		context.ds = 0x2222;
	}
	nr_events = 0;
	enter_case(&context);
}
