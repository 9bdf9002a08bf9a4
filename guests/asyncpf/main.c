/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Tasks that fill and verify memory of their own, over a hypervisor that may have to bring a page
 * first. KVM says so by a #PF with a token (Documentation/virt/kvm/x86/msr.rst): the task waits, and
 * others run until an interrupt brings the token back. Where none can, main() computes. With
 * report=1 the guest prints how often, and how much of its computing was done meanwhile; otherwise
 * its output says nothing of the memory under it.
 */
#include "guest.h"
#include "smp/apic.h"
#include "smp/irq.h"
#include "smp/processor.h"
#include "task.h"

#define WORDS_PER_PAGE (PAGE_SIZE / sizeof(u64))

#define MSR_KVM_ASYNC_PF_EN 0x4b564d02
#define MSR_KVM_ASYNC_PF_INT 0x4b564d06
#define MSR_KVM_ASYNC_PF_ACK 0x4b564d07
#define ASYNC_PF_ENABLED (1u << 0)
#define ASYNC_PF_SEND_ALWAYS (1u << 1)
#define ASYNC_PF_DELIVERY_AS_INT (1u << 3)
#define FEATURES (1u << 4 | 1u << 14)
#define PAGE_NOT_PRESENT 1
#define VECTOR_PAGE_READY 0x60
#define STEPS_PER_UNIT 64

static u64 size = DEFAULT_size, tasks = DEFAULT_tasks, passes = DEFAULT_passes;
static u64 work = DEFAULT_work, report = DEFAULT_report;

static struct {
	volatile u32 flags, token;
	u8 pad[56];
} area __attribute__((aligned(64)));

static u64 *memory, pages_each, sums[MAX_TASKS];
static u64 not_present, ready, units, units_meanwhile, number;

static bool has_async_pf(void)
{
	u32 eax = 0x40000000, ebx, ecx = 0, edx;

	__asm__ volatile("cpuid" : "+a"(eax), "=b"(ebx), "+c"(ecx), "=d"(edx));
	if (ebx != 0x4b4d564b || ecx != 0x564b4d56 || edx != 0x4d || eax < 0x40000001)
		return false;
	eax = 0x40000001;
	__asm__ volatile("cpuid" : "+a"(eax), "=b"(ebx), "+c"(ecx), "=d"(edx));
	return (eax & FEATURES) == FEATURES;
}

static void on_page_fault(struct trap_frame *frame)
{
	u32 token = (u32)read_cr2();

	if (area.flags != PAGE_NOT_PRESENT)
		unexpected_trap(frame);
	area.flags = 0;
	not_present++;
	task_wait(token);
}

static void on_page_ready(struct trap_frame *frame)
{
	u32 token = area.token;
	u64 woken;

	(void)frame;
	apic_eoi();
	area.token = 0;
	wrmsr(MSR_KVM_ASYNC_PF_ACK, 1);
	if (!token)
		return;
	woken = task_wake(token);
	if (token == ALL_TOKENS)
		return;
	ready++;
	if (woken != 1)
		fail("%lu tasks wait for token 0x%x", woken, token);
}

static void enable(void)
{
	if (!has_async_pf())
		return;
	irq_init();
	apic_enable();
	tasks_take_interrupts();
	set_handler(VECTOR_PF, on_page_fault);
	set_handler(VECTOR_PAGE_READY, on_page_ready);
	wrmsr(MSR_KVM_ASYNC_PF_INT, VECTOR_PAGE_READY);
	wrmsr(MSR_KVM_ASYNC_PF_EN,
	      (u64)&area | ASYNC_PF_ENABLED | ASYNC_PF_SEND_ALWAYS | ASYNC_PF_DELIVERY_AS_INT);
}

static u64 word_of(u64 page, u64 pass, u64 i)
{
	return (page * passes + pass + 1) * GOLDEN + i;
}

static void fill(u64 *words, u64 page, u64 pass)
{
	for (u64 i = 0; i < WORDS_PER_PAGE; i++)
		words[i] = word_of(page, pass, i);
}

static u64 verify(const u64 *words, u64 page, u64 pass, u64 sum)
{
	for (u64 i = 0; i < WORDS_PER_PAGE; i++) {
		if (words[i] != word_of(page, pass, i))
			fail("pass %lu page %lu word %lu: 0x%016lx", pass, page, i, words[i]);
		sum = checksum_add(sum, words[i]);
	}
	return sum;
}

/* Page by page in turns with the others, each verified against the pass before and filled again. */
static void touch(u64 task)
{
	for (u64 pass = 0; pass < passes; pass++) {
		for (u64 i = 0; i < pages_each; i++) {
			u64 page = task * pages_each + i, *words = memory + page * WORDS_PER_PAGE;

			if (pass)
				sums[task] = verify(words, page, pass - 1, sums[task]);
			fill(words, page, pass);
			task_yield();
		}
	}
	for (u64 i = 0; i < pages_each; i++) {
		u64 page = task * pages_each + i;

		sums[task] = verify(memory + page * WORDS_PER_PAGE, page, passes - 1, sums[task]);
		task_yield();
	}
}

static void compute(void)
{
	for (u64 i = 0; i < STEPS_PER_UNIT; i++)
		number = mix(number + GOLDEN);
	units++;
	units_meanwhile += tasks_waiting() != 0;
}

/* Tasks first; then the computing; with nothing left but to wait, wait. */
static void run_all(void)
{
	for (;;) {
		irq_disable();
		if (task_run_one())
			continue;
		if (!tasks_left() && units >= work)
			return;
		if (units < work) {
			tasks_irq_enable();
			compute();
		} else {
			irq_enable_and_halt();
		}
	}
}

int main(int argc, char **argv)
{
	const struct param params[] = {
		{ "size", &size, PAGE_SIZE, 1UL << 36 }, { "tasks", &tasks, 1, MAX_TASKS },
		{ "passes", &passes, 1, 1UL << 16 },     { "work", &work, 0, 1UL << 40 },
		{ "report", &report, 0, 1 },
	};
	u64 checksum;

	parse_params(argc, argv, params, ARRAY_SIZE(params));
	pages_each = DIV_ROUND_UP(size, PAGE_SIZE * tasks);
	memory = ram_alloc(tasks * pages_each * PAGE_SIZE, PAGE_SIZE);
	enable();
	for (u64 i = 0; i < tasks; i++)
		task_create(i, touch);
	run_all();
	checksum = number;
	for (u64 i = 0; i < tasks; i++)
		checksum = checksum_add(checksum, sums[i]);
	printf("%lu tasks, %lu pages each, %lu passes, %lu units\n", tasks, pages_each, passes, units);
	if (report)
		printf("%lu pages not present, %lu tokens back, %lu units meanwhile\n", not_present, ready,
		       units_meanwhile);
	finish(checksum, not_present == ready);
}
