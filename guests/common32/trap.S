/* SPDX-License-Identifier: GPL-2.0-or-later */
/* One stub of 16 bytes for each vector, then the way to trap(frame) and back. */
#include "selectors.h"

	.text
	.globl	trap_stubs
	.balign	16
trap_stubs:
	.set	vector, 0
	.rept	33
	.balign	16
	/* These push an error code themselves: 8, 10-14, 17. */
	.if	vector != 8 && (vector < 10 || vector > 14) && vector != 17
	pushl	$0
	.endif
	.if	vector == 32
	pushl	$0x80
	.else
	pushl	$vector
	.endif
	jmp	trap_common
	.set	vector, vector + 1
	.endr

trap_common:
	pushal
	cld
	movl	$KERNEL_DATA, %eax
	movl	%eax, %ds
	movl	%eax, %es
	pushl	%esp
	call	trap
	addl	$4, %esp
	/* Data segments of CPL 3 are equal but for their DPL. */
	testl	$3, 44(%esp)
	jz	1f
	movl	$USER_DATA, %eax
	movl	%eax, %ds
	movl	%eax, %es
1:	popal
	addl	$8, %esp
	iretl
