/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Cooperative tasks at CPL 0. One runs until it yields, waits or ends; main() is the one that runs when no
 * other can.
 */
#ifndef TASK_H
#define TASK_H

#include "types.h"

#define MAX_TASKS 16

/* Tasks run with interrupts on; without, as they start, nobody can be told of a page. */
void tasks_take_interrupts(void);
void tasks_irq_enable(void);

/* A task that calls `run(number)`, and ends when that returns. */
void task_create(u64 number, void (*run)(u64 number));

/* In main(): let a task run that can; false if none can. Interrupts are off. */
bool task_run_one(void);

/* In a task: let others run. */
void task_yield(void);

/* In a task, with interrupts off: wait for task_wake(token), which other tasks are run for. */
void task_wait(u32 token);

/* Whoever waits for the token can run; with ALL_TOKENS everybody who waits. Returns how many. */
u64 task_wake(u32 token);

#define ALL_TOKENS 0xffffffffu

u64 tasks_waiting(void);
u64 tasks_left(void);

#endif
