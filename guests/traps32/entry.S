/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * One stub of 32 bytes for each vector, the way into a case and the way back.
 *
 * Stacks have tops that are multiples of 8, and code in CPL 0 keeps its own so. Three, five or nine
 * words are pushed without an error code (same level, from CPL 3, from virtual-8086 mode), one more
 * with it: bit 2 of ESP tells which.
 */
#define NO_ERROR -1
#define K_DATA 0x10

	.text
	.globl	event_stubs
	.balign	32
event_stubs:
	.set	vector, 0
	.rept	256
	.balign	32
	testl	$4, %esp
	jz	1f
	pushl	$NO_ERROR
1:	pushl	$vector
	jmp	event_common
	.set	vector, vector + 1
	.endr

event_common:
	pushl	%ds
	pushl	%es
	pushal
	cld
	movl	$K_DATA, %eax
	movl	%eax, %ds
	movl	%eax, %es
	pushl	%esp
	call	on_event
	addl	$4, %esp
	popal
	popl	%es
	popl	%ds
	addl	$8, %esp
	iretl

/* void enter_case(const struct context *): see traps32.h for the order of the words. */
	.globl	enter_case
enter_case:
	pushl	%ebp
	pushl	%ebx
	pushl	%esi
	pushl	%edi
	movl	20(%esp), %ebx
	movl	%esp, case_esp
	testl	$0x20000, 8(%ebx)
	jnz	2f
	movl	24(%ebx), %eax
	testl	$3, 4(%ebx)
	jnz	1f
	movl	12(%ebx), %esp
	jmp	3f
1:	movl	%eax, %ds
	movl	%eax, %es
	pushl	%ss:16(%ebx)
	pushl	%ss:12(%ebx)
3:	pushl	%ss:8(%ebx)
	pushl	%ss:4(%ebx)
	pushl	%ss:(%ebx)
	jmp	4f
2:	pushl	$0x4444
	pushl	$0x3333
	pushl	24(%ebx)
	pushl	$0x1111
	pushl	16(%ebx)
	pushl	12(%ebx)
	pushl	8(%ebx)
	pushl	4(%ebx)
	pushl	(%ebx)
4:	xorl	%eax, %eax
	xorl	%ebx, %ebx
	xorl	%ecx, %ecx
	xorl	%edx, %edx
	xorl	%esi, %esi
	xorl	%edi, %edi
	xorl	%ebp, %ebp
	iretl

	.globl	leave_case
leave_case:
	movl	case_esp, %esp
	movl	$K_DATA, %eax
	movl	%eax, %ss
	movl	%eax, %ds
	movl	%eax, %es
	xorl	%eax, %eax
	movl	%eax, %fs
	movl	%eax, %gs
	pushl	$2
	popfl
	popl	%edi
	popl	%esi
	popl	%ebx
	popl	%ebp
	ret

/* The body of the second task: tell what it finds, then go back by IRET; the next time it goes on behind it. */
	.globl	task_entry
task_entry:
	pushfl
	popl	task_flags
	movl	%esp, task_esp
	popl	%eax
	movl	%eax, task_error
	incl	task_entries
	iretl
	incl	task_entries
	iretl

	.bss
	.balign	4
	.globl	case_esp, task_flags, task_esp, task_error, task_entries
case_esp:
	.skip	4
task_flags:
	.skip	4
task_esp:
	.skip	4
task_error:
	.skip	4
task_entries:
	.skip	4
