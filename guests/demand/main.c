/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The kernel: nothing of the program is mapped when it starts, not even its stack and code. The
 * page fault handler maps code, zero page, fresh and copied pages; afterwards the answer, the
 * originals of the shared pages and the number of faults of each kind are compared with what they
 * must be.
 */
#include "guest.h"
#include "job.h"

#define NO_FRAME 0

static u64 size = DEFAULT_size, shared = DEFAULT_shared, seed = DEFAULT_seed;
static u64 root, zero_frame, originals;

static struct {
	u64 text, stack, zero, fresh, from_zero, shared, copied, at_cpl0;
} faults;

extern u8 _user_start[], _user_end[];
void program(struct job *job);

static bool inside(u64 gva, u64 start, u64 bytes)
{
	return gva >= start && gva - start < page_align(bytes);
}

static void map_user(u64 gva, u64 frame, u64 rights)
{
	map_page(root, gva, frame, PT_PRESENT | PT_USER | rights);
	invlpg(gva);
}

static void heap_fault(u64 gva, bool write, u64 present)
{
	if (!write) {
		faults.zero++;
		map_user(gva, zero_frame, PT_NX);
		return;
	}
	if (present)
		faults.from_zero++;
	else
		faults.fresh++;
	map_user(gva, frame_alloc_zeroed(), PT_WRITABLE | PT_NX);
}

static void shared_fault(u64 gva, bool write)
{
	u64 original = originals + (gva - USER_SHARED), frame;

	if (!write) {
		faults.shared++;
		map_user(gva, original, PT_NX);
		return;
	}
	faults.copied++;
	frame = frame_alloc();
	memcpy((void *)frame, (const void *)original, PAGE_SIZE);
	map_user(gva, frame, PT_WRITABLE | PT_NX);
}

static void on_page_fault(struct trap_frame *frame)
{
	u64 gva = read_cr2() & ~(PAGE_SIZE - 1), present = frame->error_code & PF_PRESENT;
	bool write = frame->error_code & PF_WRITE, user = frame->error_code & PF_USER;

	if (user != (frame->cs == USER_CS) || (present && !write))
		unexpected_trap(frame);
	faults.at_cpl0 += !user;
	if (inside(gva, USER_HEAP, size)) {
		heap_fault(gva, write, present);
	} else if (inside(gva, USER_SHARED, shared)) {
		shared_fault(gva, write);
	} else if (inside(gva, USER_STACK - USER_STACK_SIZE, USER_STACK_SIZE) && !present) {
		faults.stack++;
		map_user(gva, frame_alloc_zeroed(), PT_WRITABLE | PT_NX);
	} else if (inside(gva, USER_TEXT, (u64)(_user_end - _user_start)) && !write) {
		faults.text++;
		map_user(gva, (u64)_user_start + (gva - USER_TEXT), 0);
	} else {
		unexpected_trap(frame);
	}
}

static void sys_discard(u64 gva)
{
	u64 frame = unmap_page(root, gva) & PT_ADDR_MASK;

	invlpg(gva);
	if (frame != zero_frame && frame != NO_FRAME)
		frame_free(frame);
}

static u64 on_syscall(u64 number, u64 a, u64 b, u64 c)
{
	switch (number) {
	case SYS_WRITE:
		for (u64 i = 0; i < b; i++)
			serial_putc(((const char *)a)[i]);
		return b;
	case SYS_FILL:
		for (u64 i = 0; i < b; i++)
			((volatile u64 *)a)[i] = heap_word(c + i, seed);
		return b;
	case SYS_DISCARD:
		sys_discard(a);
		return 0;
	default:
		fail("system call %lu", number);
	}
}

/* What the program must answer, from arithmetic alone. */
static u64 expected_checksum(u64 heap_pages, u64 shared_pages)
{
	u64 checksum = 0;

	for (u64 i = 0; i < heap_pages * WORDS_PER_PAGE; i++) {
		u64 page = i / WORDS_PER_PAGE, again = i % WORDS_PER_PAGE == page % WORDS_PER_PAGE ? page : 0;

		checksum = checksum_add(checksum, page % DISCARD_STEP == 0 ? again : heap_word(i, seed));
	}
	for (u64 i = 0; i < shared_pages * WORDS_PER_PAGE; i++) {
		u64 page = i / WORDS_PER_PAGE;
		bool written = page % COPY_STEP == 0 && i % WORDS_PER_PAGE == page % WORDS_PER_PAGE;

		checksum = checksum_add(checksum, written ? page : shared_word(i, seed));
	}
	return checksum;
}

static void check_count(const char *what, u64 count, u64 expected)
{
	printf("%-10s %6lu\n", what, count);
	if (count != expected)
		fail("%lu faults of kind %s, not %lu", count, what, expected);
}

static void check_faults(u64 heap_pages, u64 shared_pages)
{
	u64 own = kernel_part(heap_pages), read_first = DIV_ROUND_UP(own, READ_FIRST_STEP);
	u64 discarded = DIV_ROUND_UP(heap_pages, DISCARD_STEP);

	check_count("zero", faults.zero, read_first + discarded);
	check_count("from zero", faults.from_zero, read_first + discarded);
	check_count("fresh", faults.fresh, heap_pages - read_first);
	check_count("shared", faults.shared, shared_pages);
	check_count("copied", faults.copied, DIV_ROUND_UP(shared_pages, COPY_STEP));
	/* The kernel fills its part of the heap and puts the job on the stack. */
	check_count("at CPL 0", faults.at_cpl0, heap_pages - own + 1);
	check_count("stack", faults.stack, 1);
	for (u64 i = 0; i < shared_pages * WORDS_PER_PAGE; i++)
		if (((u64 *)originals)[i] != shared_word(i, seed))
			fail("word %lu of the original of the shared pages has changed", i);
}

static void prepare(u64 shared_pages)
{
	root = space_create();
	zero_frame = frame_alloc_zeroed();
	originals = (u64)ram_alloc(shared_pages * PAGE_SIZE, PAGE_SIZE);
	for (u64 i = 0; i < shared_pages * WORDS_PER_PAGE; i++)
		((u64 *)originals)[i] = shared_word(i, seed);
	set_handler(VECTOR_PF, on_page_fault);
	write_cr3(root);
}

int main(int argc, char **argv)
{
	const struct param params[] = {
		{ "size", &size, 4 * PAGE_SIZE, 1UL << 36 },
		{ "shared", &shared, PAGE_SIZE, 1UL << 36 },
		{ "seed", &seed, 0, ~0UL },
	};
	u64 heap_pages, shared_pages, status, entry = USER_TEXT + ((u64)program - (u64)_user_start);
	struct job *job = (struct job *)(USER_STACK - sizeof(*job));

	parse_params(argc, argv, params, ARRAY_SIZE(params));
	heap_pages = DIV_ROUND_UP(size, PAGE_SIZE);
	shared_pages = DIV_ROUND_UP(shared, PAGE_SIZE);
	prepare(shared_pages);
	*job = (struct job){ .heap_pages = heap_pages, .shared_pages = shared_pages, .seed = seed };
	/* As after a call: RSP + 8 is a multiple of 16. */
	status = enter_user(entry, ((u64)job & ~15UL) - 8, (u64)job, on_syscall);
	if (status)
		fail("the program ends with %lu", status);
	check_faults(heap_pages, shared_pages);
	if (job->checksum != expected_checksum(heap_pages, shared_pages))
		fail("the program computes 0x%016lx", job->checksum);
	printf("%lu page faults\n", faults.text + faults.stack + faults.zero + faults.from_zero +
					    faults.fresh + faults.shared + faults.copied);
	finish(job->checksum, true);
}
