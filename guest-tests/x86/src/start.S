// The way in: 32-bit protected mode, flat, no paging, no stack; ebx points to PVH's start information.
.section .head, "ax"
.code32
.global start
start:
    cld
    movl    %ebx, %esi
    leal    12(%ebx), %esp              // the flags' word will do as a stack of one
    call    1f
1:  popl    %ebp
    subl    $(1b - start), %ebp
    movl    $0, 8(%ebx)

    // The first 4 GiB at their own addresses, by 2 MiB.
    leal    (tables - start)(%ebp), %ebx
    leal    0x1003(%ebx), %eax
    movl    %eax, (%ebx)
    leal    0x2003(%ebx), %eax
    movl    $4, %ecx
    leal    0x1000(%ebx), %edx
2:  movl    %eax, (%edx)
    addl    $0x1000, %eax
    addl    $8, %edx
    loop    2b
    movl    $0x83, %eax
    movl    $2048, %ecx
    leal    0x2000(%ebx), %edx
3:  movl    %eax, (%edx)
    addl    $0x200000, %eax
    addl    $8, %edx
    loop    3b
    leal    (gdt - start)(%ebp), %eax
    movl    %eax, (gdtr - start + 2)(%ebp)
    lgdt    (gdtr - start)(%ebp)
    movl    %ebx, %cr3
    movl    %cr4, %eax
    orl     $0x20, %eax
    movl    %eax, %cr4
    movl    $0xc0000080, %ecx
    rdmsr
    orl     $0x100, %eax
    wrmsr
    movl    %cr0, %eax
    orl     $0x80010001, %eax
    movl    %eax, %cr0
    leal    (stack_0_end - start)(%ebp), %esp
    leal    (start64 - start)(%ebp), %eax
    pushl   $8
    pushl   %eax
    lret
.code64
start64:
    movl    $16, %eax
    movl    %eax, %ds
    movl    %eax, %es
    movl    %eax, %ss
    movl    %ebp, %ebp
    movl    %esi, %edi
    leaq    rela_start(%rip), %rbx
    leaq    rela_end(%rip), %rcx
4:  cmpq    %rcx, %rbx
    jae     5f
    movq    (%rbx), %rdx
    movq    16(%rbx), %rax
    addq    %rbp, %rax
    movq    %rax, (%rbp, %rdx)
    addq    $24, %rbx
    jmp     4b
5:  leaq    stack_0_end(%rip), %rsp
    xorl    %ebp, %ebp
    call    boot
6:  hlt
    jmp     6b

// The other CPU: copied to a page of the first MiB. It goes to what it finds behind itself.
.section .rodata.other, "a"
.code16
.global other
other:
    cli
    movw    %cs, %ax
    movw    %ax, %ds
    xorl    %ebp, %ebp
    movw    %ax, %bp
    shll    $4, %ebp
    leal    (other_gdt - other)(%ebp), %eax
    movl    %eax, (other_gdtr - other + 2)
    leal    (other_32 - other)(%ebp), %eax
    movl    %eax, (other_far - other)
    leal    (other_64 - other)(%ebp), %eax
    movl    %eax, (other_far64 - other)
    lgdtl   (other_gdtr - other)
    movl    %cr0, %eax
    orl     $1, %eax
    movl    %eax, %cr0
    ljmpl   *(other_far - other)
.code32
other_32:
    movw    $16, %ax
    movw    %ax, %ds
    movw    %ax, %es
    movw    %ax, %ss
    movl    %cr4, %eax
    orl     $0x20, %eax
    movl    %eax, %cr4
    movl    (other_cr3 - other)(%ebp), %eax
    movl    %eax, %cr3
    movl    $0xc0000080, %ecx
    rdmsr
    orl     $0x100, %eax
    wrmsr
    movl    %cr0, %eax
    orl     $0x80010000, %eax
    movl    %eax, %cr0
    ljmpl   *(other_far64 - other)(%ebp)
.code64
other_64:
    movl    %ebp, %ebp
    movq    (other_stack - other)(%rbp), %rsp
    movq    (other_entry - other)(%rbp), %rax
    xorl    %ebp, %ebp
    callq   *%rax
7:  hlt
    jmp     7b
.balign 8
other_gdt:                              // 64-bit code and data are where the boot CPU has them
    .quad 0
    .quad 0x00af9b000000ffff
    .quad 0x00cf93000000ffff
    .quad 0x00cf9b000000ffff
other_gdtr:
    .short 31
    .long 0
other_far:
    .long 0
    .short 24
other_far64:
    .long 0
    .short 8
.balign 8
.global other_cr3
other_cr3:
    .quad 0
other_stack:
    .quad 0
other_entry:
    .quad 0
.global other_end
other_end:

.section .text
.code64
// General protection: whoever has said where to go on goes on there, with the count of such exceptions in memory raised.
.global protection
protection:
    addq    $8, %rsp                    // the error code
    pushq   %rax
    leaq    refusals(%rip), %rax
    lock incq (%rax)
    movq    %r15, 8(%rsp)               // RIP: by agreement in r15
    popq    %rax
    iretq

// Any other exception ends the machine.
.global surprise
surprise:
    call    surprised

.section .data
.balign 8
.global refusals
refusals:
    .quad 0
gdt:
    .quad 0
    .quad 0x00af9b000000ffff
    .quad 0x00cf93000000ffff
gdtr:
    .short 23
    .long 0

.section .bss, "aw", @nobits
.balign 4096
.global tables
tables:
    .skip 6 * 4096
    .skip 16384
stack_0_end:
    .skip 16384
.global stack_1_end
stack_1_end:
