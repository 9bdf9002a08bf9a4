/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The accesses, all of them between probe_enter and probe_done; whatever happens goes on at probe_done. */

#define READ		0
#define WRITE		1
#define FETCH		2
#define MODIFY		3
#define PUSH		6
#define LOAD_RBP	7
#define CONTROL_CR3	1
#define CONTROL_EFER	3
#define CONTROL_PKRU	4
#define MSR_EFER	0xc0000080
#define USER_CS		0x23
#define USER_DS		0x1b

/* RDI: address, ESI: kind, EDX: value. EAX: what was read. */
	.macro	access
	cmpl	$WRITE, %esi
	je	1f
	ja	2f
	movl	(%rdi), %eax
	jmp	9f
1:	movl	%edx, (%rdi)
	jmp	9f
2:	cmpl	$MODIFY, %esi
	je	3f
	ja	4f
	call	*%rdi
	jmp	9f
3:	addl	%edx, (%rdi)
	jmp	9f
4:	cmpl	$PUSH, %esi
	jae	5f
	movl	%edx, %fs
	jmp	9f
5:	ja	6f
	leaq	8(%rdi), %rsp
	pushq	$0
	jmp	9f
6:	movq	%rdi, %rbp
	cmpl	$LOAD_RBP, %esi
	ja	7f
	movq	(%rbp), %rax
	jmp	9f
7:	movq	%gs:(%rbp), %rax
9:
	.endm

	.macro	enter
	pushq	%rbx
	pushq	%rbp
	pushq	%r12
	pushq	%r13
	pushq	%r14
	pushq	%r15
	movq	%rsp, probe_rsp
	.endm

	.text
	.code64
/* u64 probe_kernel(address, kind, value, rflags) */
	.globl	probe_kernel
probe_kernel:
	enter
	pushq	%rcx
	popfq
	access
	.globl	probe_done
probe_done:
	movq	probe_rsp, %rsp
	pushq	$2
	popfq
	popq	%r15
	popq	%r14
	popq	%r13
	popq	%r12
	popq	%rbp
	popq	%rbx
	ret

/* u64 probe_user(address, kind, value, rflags, rip, rsp) */
	.globl	probe_user
probe_user:
	enter
	pushq	$USER_DS
	pushq	%r9
	pushq	%rcx
	pushq	$USER_CS
	pushq	%r8
	iretq

/* void probe_load(value, what) */
	.globl	probe_load
probe_load:
	enter
	movl	%edi, %eax
	movq	%rdi, %rdx
	shrq	$32, %rdx
	xorl	%ecx, %ecx
	cmpl	$CONTROL_CR3, %esi
	je	2f
	ja	3f
	movq	%rdi, %cr0
	jmp	probe_done
2:	movq	%rdi, %cr3
	jmp	probe_done
3:	cmpl	$CONTROL_EFER, %esi
	je	4f
	ja	5f
	movq	%rdi, %cr4
	jmp	probe_done
4:	movl	$MSR_EFER, %ecx
	wrmsr
	jmp	probe_done
5:	cmpl	$CONTROL_PKRU, %esi
	seta	%cl
	.byte	0x0f, 0x01, 0xef	/* WRPKRU */
	jmp	probe_done

	.section .user, "ax", @progbits
	.globl	probe_user_stub
probe_user_stub:
	access
	int	$0x80

	.bss
	.balign	8
probe_rsp:
	.skip	8
