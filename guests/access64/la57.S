/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * CR4.LA57 can be changed only while paging is off, and paging cannot be turned off in 64-bit mode
 * (SDM vol. 3, 4.1.1). So: to 32-bit code, paging off, LA57, CR3, paging on, back.
 */
#define CODE64		0x08
#define CODE32		0x38
#define CR0_PG		0x80000000
#define CR4_LA57	0x1000

	.text
	.code64
/* void enter_la57(root): below 4 GiB, as are the stack and this code, which every table maps to itself */
	.globl	enter_la57
enter_la57:
	pushq	%rbx
	pushq	%rbp
	pushq	%r12
	pushq	%r13
	pushq	%r14
	pushq	%r15
	pushq	$CODE32
	leaq	1f(%rip), %rax
	pushq	%rax
	lretq
	.code32
1:	movl	%cr0, %eax
	andl	$~CR0_PG, %eax
	movl	%eax, %cr0
	movl	%cr4, %eax
	orl	$CR4_LA57, %eax
	movl	%eax, %cr4
	movl	%edi, %cr3
	movl	%cr0, %eax
	orl	$CR0_PG, %eax
	movl	%eax, %cr0
	ljmp	$CODE64, $2f
	.code64
2:	popq	%r15
	popq	%r14
	popq	%r13
	popq	%r12
	popq	%rbp
	popq	%rbx
	ret
