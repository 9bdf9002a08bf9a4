/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "task.h"

#include "guest.h"
#include "smp/processor.h"

#define STACK_SIZE (4 * PAGE_SIZE)

enum state { UNUSED, RUNNABLE, WAITING, ENDED };

struct task {
	enum state state;
	u32 token;
	u64 rsp;
	void (*run)(u64 number);
};

void switch_stack(u64 *from, u64 to);

static struct task tasks[MAX_TASKS];
static bool interrupts;
static u64 current, main_rsp, next;
static u8 stacks[MAX_TASKS][STACK_SIZE] __attribute__((aligned(16)));

void tasks_take_interrupts(void)
{
	interrupts = true;
}

void tasks_irq_enable(void)
{
	if (interrupts)
		irq_enable();
}

/* Entered by the return of switch_stack(), with interrupts off. */
static void start(void)
{
	tasks_irq_enable();
	tasks[current].run(current);
	irq_disable();
	tasks[current].state = ENDED;
	switch_stack(&tasks[current].rsp, main_rsp);
	fail("task %lu goes on after its end", current);
}

void task_create(u64 number, void (*run)(u64 number))
{
	/* As after a call: RSP + 8 is a multiple of 16 when start() begins. */
	u64 *rsp = (u64 *)(stacks[number] + STACK_SIZE) - 2;

	*--rsp = (u64)start;
	rsp -= 6;
	tasks[number] = (struct task){ .state = RUNNABLE, .rsp = (u64)rsp, .run = run };
}

bool task_run_one(void)
{
	for (u64 i = 0; i < MAX_TASKS; i++) {
		u64 number = (next + i) % MAX_TASKS;

		if (tasks[number].state != RUNNABLE)
			continue;
		current = number;
		next = number + 1;
		switch_stack(&main_rsp, tasks[number].rsp);
		return true;
	}
	return false;
}

void task_yield(void)
{
	irq_disable();
	switch_stack(&tasks[current].rsp, main_rsp);
	tasks_irq_enable();
}

void task_wait(u32 token)
{
	tasks[current].state = WAITING;
	tasks[current].token = token;
	switch_stack(&tasks[current].rsp, main_rsp);
}

u64 task_wake(u32 token)
{
	u64 woken = 0;

	for (u64 i = 0; i < MAX_TASKS; i++) {
		if (tasks[i].state != WAITING || (token != ALL_TOKENS && tasks[i].token != token))
			continue;
		tasks[i].state = RUNNABLE;
		woken++;
	}
	return woken;
}

static u64 count(enum state state)
{
	u64 found = 0;

	for (u64 i = 0; i < MAX_TASKS; i++)
		found += tasks[i].state == state;
	return found;
}

u64 tasks_waiting(void)
{
	return count(WAITING);
}

u64 tasks_left(void)
{
	return count(WAITING) + count(RUNNABLE);
}
