/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Several CPUs in 32-bit protected mode. The boot CPU starts the others one by one by INIT and
 * start-up IPI; all count in the same memory under a ticket lock and by locked instructions. Then
 * each turns on paging on its own, at its own time, and they count again: through a mapping in each
 * CPU's own page directory, all of the same frame.
 */
#include "ap.h"
#include "guest.h"

#define MAX_CPUS 16u
#define COUNT 2520u /* by each method, shared out among the CPUs */
#define STACK_SIZE 4096u
#define SPIN_LIMIT (1u << 27)

#define APIC_SVR 0xfee000f0u
#define APIC_ICR 0xfee00300u
#define APIC_ICR_HIGH 0xfee00310u
#define SVR_ENABLE 0x1ffu
#define ICR_INIT 0x4500u
#define ICR_STARTUP (0x4600u | AP_PAGE / PAGE_SIZE)
#define ICR_BUSY (1u << 12)
#define FW_CFG_SELECTOR 0x510
#define FW_CFG_DATA 0x511
#define FW_CFG_NB_CPUS 5

#define P 0x01u
#define W 0x02u
#define PS 0x80u
#define LARGE_SHIFT 22
#define KERNEL_PAGES 4u /* 16 MiB */
#define WINDOW 0x40000000u

enum stage { ALONE, PLAIN, PAGED, OVER };

struct counters {
	u32 next, owner; /* the ticket lock */
	u32 locked, xadd, cmpxchg, inc;
	u64 wide;
};

extern const u8 ap_trampoline[], ap_trampoline_end[];
u32 ap_stack;
_Noreturn void ap_main(void);

static u32 stacks[MAX_CPUS][STACK_SIZE / 4] __attribute__((aligned(16)));
static u32 directories[MAX_CPUS][1024] __attribute__((aligned(PAGE_SIZE)));
static u32 tables[MAX_CPUS][1024] __attribute__((aligned(PAGE_SIZE)));
static union {
	struct counters counters;
	u8 page[PAGE_SIZE];
} shared __attribute__((aligned(PAGE_SIZE)));

static u32 nr_cpus, online, stage, finished;
static bool paging = DEFAULT_paging;

#define load_acquire(p) __atomic_load_n(p, __ATOMIC_ACQUIRE)
#define store_release(p, value) __atomic_store_n(p, value, __ATOMIC_RELEASE)

#define spin_until(condition, what)                              \
	do {                                                     \
		for (u32 spins = 0; !(condition); spins++) {     \
			if (spins == SPIN_LIMIT)                 \
				fail("no end to %s", what);      \
			__asm__ volatile("pause" : : : "memory"); \
		}                                                \
	} while (0)

static u32 xadd(u32 *p, u32 add)
{
	__asm__ volatile("lock xaddl %0, %1" : "+r"(add), "+m"(*p) : : "memory", "cc");
	return add;
}

static u32 apic_read(u32 address)
{
	return *(volatile u32 *)address;
}

static void apic_write(u32 address, u32 value)
{
	*(volatile u32 *)address = value;
}

static void send(u32 id, u32 command)
{
	apic_write(APIC_ICR_HIGH, id << 24);
	apic_write(APIC_ICR, command);
	spin_until(!(apic_read(APIC_ICR) & ICR_BUSY), "the sending of an IPI");
}

/* Through `c`, each CPU's own view of the counters. */
static void count(struct counters *c, u32 id)
{
	u32 n = COUNT * (id + 1) / nr_cpus - COUNT * id / nr_cpus;

	for (u32 i = 0; i < n; i++) {
		u32 ticket = xadd(&c->next, 1), old = c->cmpxchg, found, value;
		bool done;

		spin_until(load_acquire(&c->owner) == ticket, "the wait for the lock");
		value = *(volatile u32 *)&c->locked;
		__asm__ volatile("" : "+r"(value));
		*(volatile u32 *)&c->locked = value + 1;
		store_release(&c->owner, ticket + 1);
		xadd(&c->xadd, 1);
		__asm__ volatile("lock incl %0" : "+m"(c->inc) : : "memory", "cc");
		do {
			found = old;
			__asm__ volatile("lock cmpxchgl %2, %1" : "+a"(found), "+m"(c->cmpxchg) : "r"(old + 1) : "memory", "cc");
			done = found == old;
			old = found;
		} while (!done);
		for (u64 wide = 0, new = 1; done; new = wide + 1) {
			__asm__ volatile("lock cmpxchg8b %1"
					 : "=@ccnz"(done), "+m"(c->wide), "+A"(wide)
					 : "b"((u32)new), "c"((u32)(new >> 32))
					 : "memory");
		}
	}
}

/* Identity for the kernel and the APIC, WINDOW through a table of the CPU's own. */
static void turn_on_paging(u32 id)
{
	u32 *directory = directories[id];

	for (u32 n = 0; n < KERNEL_PAGES; n++)
		directory[n] = n << LARGE_SHIFT | PS | W | P;
	directory[APIC_SVR >> LARGE_SHIFT] = (APIC_SVR >> LARGE_SHIFT) << LARGE_SHIFT | PS | W | P;
	directory[WINDOW >> LARGE_SHIFT] = (u32)tables[id] | W | P;
	tables[id][id] = (u32)&shared | W | P;
	write_cr4(read_cr4() | CR4_PSE);
	write_cr3((u32)directory);
	write_cr0(read_cr0() | CR0_PG | CR0_WP);
}

static void work(u32 id)
{
	spin_until(load_acquire(&stage) >= PLAIN, "the first part");
	count(&shared.counters, id);
	xadd(&finished, 1);
	spin_until(load_acquire(&stage) >= PAGED, "the second part");
	if (stage == PAGED) {
		turn_on_paging(id);
		count((struct counters *)(WINDOW + id * PAGE_SIZE), id);
		xadd(&finished, 1);
	}
}

void ap_main(void)
{
	u32 id = online;

	store_release(&online, id + 1);
	work(id);
	for (;;)
		__asm__ volatile("cli; hlt");
}

static void start_aps(void)
{
	__asm__ volatile("outw %w0, %w1" : : "a"(FW_CFG_NB_CPUS), "Nd"(FW_CFG_SELECTOR));
	nr_cpus = inb(FW_CFG_DATA);
	if (nr_cpus > MAX_CPUS)
		fail("%u CPUs are more than %u", nr_cpus, MAX_CPUS);
	memcpy((void *)AP_PAGE, ap_trampoline, (u32)(ap_trampoline_end - ap_trampoline));
	apic_write(APIC_SVR, SVR_ENABLE);
	online = 1;
	for (u32 id = 1; id < nr_cpus; id++) {
		ap_stack = (u32)stacks[id] + STACK_SIZE;
		send(id, ICR_INIT);
		send(id, ICR_STARTUP);
		spin_until(load_acquire(&online) > id, "the start of an AP");
	}
}

static void check(enum stage part, const char *name)
{
	const struct counters *c = &shared.counters;
	u32 wanted = COUNT * part;

	spin_until(load_acquire(&finished) == nr_cpus * part, name);
	if (c->locked != wanted || c->xadd != wanted || c->cmpxchg != wanted || c->inc != wanted || c->wide != wanted)
		fail("%s: %u locked, xadd %u, cmpxchg %u, inc %u, cmpxchg8b %u, not %u", name, c->locked, c->xadd,
		     c->cmpxchg, c->inc, (u32)c->wide, wanted);
	printf("%s: 5 times %u\n", name, wanted);
}

int main(int argc, char **argv)
{
	parse_flag(argc, argv, "paging", &paging);
	start_aps();
	store_release(&stage, (u32)PLAIN);
	count(&shared.counters, 0);
	xadd(&finished, 1);
	check(PLAIN, "without paging");
	store_release(&stage, (u32)(paging ? PAGED : OVER));
	if (paging) {
		turn_on_paging(0);
		count((struct counters *)WINDOW, 0);
		xadd(&finished, 1);
		check(PAGED, "with paging");
	}
	finish(checksum_add(0, shared.counters.locked));
}
