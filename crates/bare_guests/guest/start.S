/* Entry points: long mode (RSI = boot_params), 32-bit PVH (EBX = hvm_start_info) and the
 * real-mode trampoline of further CPUs. All end in C on page tables of our own, which map the
 * first 4 GiB to themselves. */

#define SELECTOR_CODE_64 0x10
#define SELECTOR_DATA    0x18
#define SELECTOR_CODE_32 0x20
#define TRAMPOLINE       0x8000
#define STACK_BYTES      0x4000
#define CPUS_MAX         64

#ifdef PVH_NOTE
	.section .note.Xen, "a", @note
	.balign 4
	.long 4, 4, 18
	.asciz "Xen"
	.long start_32
#endif

	.section .text.start, "ax", @progbits
	.code64
	.globl start_64
start_64:
	cli
	lgdt gdt_pointer(%rip)
	mov $page_tables, %eax
	mov %rax, %cr3
	mov $stack_top, %esp
	xor %ebp, %ebp
	xor %edi, %edi
	call guest_main
1:	hlt
	jmp 1b

	.code32
start_32:
	cli
	mov %ebx, %esi
	lgdt gdt_pointer
	mov $page_tables, %eax
	mov %eax, %cr3
	mov %cr4, %eax
	or $0x20, %eax
	mov %eax, %cr4
	mov $0xc0000080, %ecx
	rdmsr
	or $0x100, %eax
	wrmsr
	mov %cr0, %eax
	or $0x80000000, %eax
	mov %eax, %cr0
	ljmp $SELECTOR_CODE_64, $1f
	.code64
1:	mov $SELECTOR_DATA, %eax
	mov %eax, %ds
	mov %eax, %es
	mov %eax, %ss
	mov $stack_top, %esp
	xor %ebp, %ebp
	mov %esi, %esi
	mov $1, %edi
	call guest_main
2:	hlt
	jmp 2b

/* Interrupts only have to end the HLT of serve(), which expects RAX to be lost. The return is
 * made without IRET; interrupts stay off. */
	.globl interrupt_entry
interrupt_entry:
	mov $0xfee000b0, %eax     /* end of interrupt */
	movl $0, (%rax)
	mov (%rsp), %rax          /* RIP */
	mov 24(%rsp), %rsp        /* RSP before the interrupt */
	jmp *%rax

/* Copied to TRAMPOLINE; a CPU arrives in real mode with CS = TRAMPOLINE >> 4, IP = 0. */
#define AT(label) (TRAMPOLINE + label - ap_start)
	.code16
	.globl ap_start, ap_end
ap_start:
	cli
	xor %ax, %ax
	mov %ax, %ds
	data32 lgdt AT(ap_gdt_pointer)
	mov %cr0, %eax
	or $1, %eax
	mov %eax, %cr0
	data32 ljmp $SELECTOR_CODE_32, $AT(ap_32)
	.code32
ap_32:
	mov $SELECTOR_DATA, %eax
	mov %eax, %ds
	mov %eax, %ss
	mov $page_tables, %eax
	mov %eax, %cr3
	mov %cr4, %eax
	or $0x20, %eax
	mov %eax, %cr4
	mov $0xc0000080, %ecx
	rdmsr
	or $0x100, %eax
	wrmsr
	mov %cr0, %eax
	or $0x80000000, %eax
	mov %eax, %cr0
	ljmp $SELECTOR_CODE_64, $ap_64
	.balign 8
ap_gdt_pointer:
	.word gdt_end - gdt - 1
	.long gdt
ap_end:

	.code64
ap_64:
	mov $1, %edi
	lock xaddl %edi, ap_count(%rip)
	add $1, %edi
	cmp $CPUS_MAX, %edi
	jae 1f
	mov %edi, %eax
	imul $STACK_BYTES, %eax, %eax
	add $ap_stacks, %eax
	mov %eax, %esp
	xor %ebp, %ebp
	call ap_main
1:	hlt
	jmp 1b

	.section .data
	.balign 4096
page_tables:
	.quad directories + 3
	.fill 511, 8, 0
directories:
	.quad directory + 3, directory + 0x1003, directory + 0x2003, directory + 0x3003
	.fill 508, 8, 0
directory:
	.set page, 0x83
	.rept 2048
	.quad page
	.set page, page + 0x200000
	.endr

gdt:
	.quad 0, 0
	.quad 0x00af9b000000ffff  /* 64-bit code */
	.quad 0x00cf93000000ffff  /* data */
	.quad 0x00cf9b000000ffff  /* 32-bit code */
gdt_end:
	.balign 8
	.word 0, 0, 0
gdt_pointer:
	.word gdt_end - gdt - 1
	.quad gdt

	.section .bss
	.globl ap_count
	.balign 4096
ap_count:
	.skip 4096
	.skip STACK_BYTES
stack_top:
ap_stacks:
	.skip STACK_BYTES * CPUS_MAX

	.section .note.GNU-stack, "", @progbits
