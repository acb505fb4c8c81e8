// The image's header, the way in, the way in of other CPUs, and the stubs of exceptions.
//
// Everything here is position-independent: the image is linked at 0 and runs where the loader put it, below 4 GiB. Until
// the relocations are applied no absolute address may be used.

// The loader's header (Multiboot2 specification, 3.1).
.set MAGIC, 0xe85250d6
.section .text.header, "ax"
.balign 8
.global mz_image
mz_image:
    .long MAGIC
    .long 0                             // architecture: i386, protected mode
    .long header_end - mz_image
    .long -(MAGIC + (header_end - mz_image))
    // Relocatable (3.1.12): anywhere, the higher the better: a guest that owns the machine wants the low memory.
    .short 10, 0
    .long 24
    .long 0x100000                      // lowest address
    .long 0xffffffff                    // highest
    .long 0x200000                      // alignment
    .long 2                             // highest possible
    .short 0, 0                         // end
    .long 8
header_end:

// eax: the loader's magic, ebx: its information. 32-bit protected mode, flat, paging off, no stack.
.code32
.global mz_entry
mz_entry:
    cli
    cld
    movl    %eax, %edi
    movl    %ebx, %esi
    leal    8(%ebx), %esp               // the information's reserved word will do as a stack of one
    call    1f
1:  popl    %ebp
    subl    $(1b - mz_image), %ebp      // where the image is
    movl    $0, 4(%ebx)

    // The first 4 GiB at their own addresses, with all rights: until the monitor has made its own map.
    leal    (boot_tables - mz_image)(%ebp), %ebx
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

    movl    %cr4, %eax
    orl     $0x20, %eax                 // PAE
    movl    %eax, %cr4
    movl    %ebx, %cr3
    movl    $0xc0000080, %ecx           // IA32_EFER: LME, NXE
    rdmsr
    orl     $0x900, %eax
    wrmsr
    movl    %cr0, %eax
    andl    $0x9fffffff, %eax           // caches on
    orl     $0x80010021, %eax           // PG, WP, NE, PE
    movl    %eax, %cr0

    leal    (boot_gdt - mz_image)(%ebp), %eax
    movl    %eax, (boot_gdtr - mz_image + 2)(%ebp)
    lgdt    (boot_gdtr - mz_image)(%ebp)
    leal    ({boot_slot} - mz_image + {stack_end})(%ebp), %esp
    leal    (mz_entry64 - mz_image)(%ebp), %eax
    pushl   $8
    pushl   %eax
    lret

.code64
mz_entry64:
    movl    $16, %eax
    movl    %eax, %ds
    movl    %eax, %es
    movl    %eax, %fs
    movl    %eax, %gs
    movl    %eax, %ss
    movl    %ebp, %ebp                  // upper halves are undefined after the switch
    movl    %edi, %edi
    movl    %esi, %esi

    // Relocate: R_X86_64_RELATIVE (8) only; nothing else may be in a static PIE without symbols.
    leaq    __rela_start(%rip), %rbx
    leaq    __rela_end(%rip), %rcx
4:  cmpq    %rcx, %rbx
    jae     5f
    cmpq    $8, 8(%rbx)
    jne     mz_park
    movq    (%rbx), %rdx
    movq    16(%rbx), %rax
    addq    %rbp, %rax
    movq    %rax, (%rbp, %rdx)
    addq    $24, %rbx
    jmp     4b
5:  leaq    ({boot_slot} + {stack_end})(%rip), %rsp
    xorl    %ebp, %ebp
    call    mz_boot
mz_park:
    cli
    hlt
    jmp     mz_park

// Where the trampoline goes with another CPU: rdi is its slot, and the tables are the monitor's.
.section .text.entry, "ax"
.global mz_other_entry
mz_other_entry:
    leaq    {stack_end}(%rdi), %rsp
    xorl    %ebp, %ebp
    call    mz_secondary
    jmp     mz_park

.section .data
.balign 8
boot_gdt:
    .quad 0
    .quad 0x00af9b000000ffff            // 64-bit code
    .quad 0x00cf93000000ffff            // data
boot_gdtr:
    .short 23
    .long 0

.section .bss, "aw", @nobits
.balign 4096
boot_tables:
    .skip 6 * 4096

// The way in of other CPUs: copied to a page below 1 MiB, where a start-up interrupt lets them begin in real mode. The
// next page has what they need (`Handover`).
.section .rodata.trampoline, "a"
.balign 16
.code16
.global mz_trampoline
mz_trampoline:
    cli
    cld
    movw    %cs, %ax
    movw    %ax, %ds
    xorl    %ebp, %ebp
    movw    %ax, %bp
    shll    $4, %ebp                    // where the page is
    leal    (tr_gdt - mz_trampoline)(%ebp), %eax
    movl    %eax, (tr_gdtr - mz_trampoline + 2)
    leal    (tr_32 - mz_trampoline)(%ebp), %eax
    movl    %eax, (tr_far32 - mz_trampoline)
    leal    (tr_64 - mz_trampoline)(%ebp), %eax
    movl    %eax, (tr_far64 - mz_trampoline)
    lgdtl   (tr_gdtr - mz_trampoline)
    movl    %cr0, %eax
    orl     $1, %eax
    movl    %eax, %cr0
    ljmpl   *(tr_far32 - mz_trampoline)
.code32
tr_32:
    movw    $16, %ax
    movw    %ax, %ds
    movw    %ax, %es
    movw    %ax, %fs
    movw    %ax, %gs
    movw    %ax, %ss
    movl    0x1000 + {cr4}(%ebp), %eax
    movl    %eax, %cr4
    movl    0x1000 + {cr3}(%ebp), %eax
    movl    %eax, %cr3
    movl    $0xc0000080, %ecx           // IA32_EFER
    movl    0x1000 + {efer}(%ebp), %eax
    xorl    %edx, %edx
    wrmsr
    movl    0x1000 + {cr0}(%ebp), %eax
    movl    %eax, %cr0
    ljmpl   *(tr_far64 - mz_trampoline)(%ebp)
.code64
tr_64:
    movl    %ebp, %ebp
    movq    0x1000 + {slot}(%rbp), %rdi
    movq    0x1000 + {entry}(%rbp), %rax
    jmpq    *%rax
.balign 8
tr_gdt:
    .quad 0
    .quad 0x00cf9b000000ffff            // 32-bit code
    .quad 0x00cf93000000ffff            // data
    .quad 0x00af9b000000ffff            // 64-bit code
tr_gdtr:
    .short 31
    .long 0
tr_far32:
    .long 0
    .short 8
tr_far64:
    .long 0
    .short 24
.global mz_trampoline_end
mz_trampoline_end:

// The stubs of exceptions, 16 bytes each: an error code where the CPU pushes none, the vector, and on.
.section .text.entry, "ax"
.code64
.balign 16
.global mz_vectors
mz_vectors:
.set vector, 0
.rept 32
    .balign 16
    // 8, 10 to 14, 17, 21, 29 and 30 have an error code (SDM 3A, table 7-1).
    .if ((0x60227d00 >> vector) & 1) == 0
    pushq   $0
    .endif
    pushq   $vector
    jmp     mz_common
    .set vector, vector + 1
.endr
.balign 16
mz_common:
    pushq   %rax
    pushq   %rcx
    pushq   %rdx
    pushq   %rbx
    pushq   %rbp
    pushq   %rsi
    pushq   %rdi
    pushq   %r8
    pushq   %r9
    pushq   %r10
    pushq   %r11
    pushq   %r12
    pushq   %r13
    pushq   %r14
    pushq   %r15
    movq    %cr2, %rax
    pushq   %rax
    cld
    movq    %rsp, %rdi
    andq    $-16, %rsp
    call    mz_exception
    jmp     mz_park

// A non-maskable interrupt in the hypervisor: back to where it came, with everything as it was.
.global mz_nmi_entry
mz_nmi_entry:
    pushq   %rax
    pushq   %rcx
    pushq   %rdx
    pushq   %rsi
    pushq   %rdi
    pushq   %r8
    pushq   %r9
    pushq   %r10
    pushq   %r11
    cld
    call    mz_nmi
    popq    %r11
    popq    %r10
    popq    %r9
    popq    %r8
    popq    %rdi
    popq    %rsi
    popq    %rdx
    popq    %rcx
    popq    %rax
    iretq

// Into a guest and back: rdi points to its registers, rsi is not zero where this VMCS has been launched. Returns 0 after
// an exit, 1 where the CPU refused (the reason is in the VMCS), 2 where there is no current VMCS.
.global mz_enter_guest
mz_enter_guest:
    pushq   %rbp
    pushq   %rbx
    pushq   %r12
    pushq   %r13
    pushq   %r14
    pushq   %r15
    pushq   %rdi
    movl    ${host_rsp}, %eax
    vmwrite %rsp, %rax
    testq   %rsi, %rsi
    movq    0x00(%rdi), %rax            // no move changes the flags
    movq    0x08(%rdi), %rcx
    movq    0x10(%rdi), %rdx
    movq    0x18(%rdi), %rbx
    movq    0x28(%rdi), %rbp
    movq    0x30(%rdi), %rsi
    movq    0x40(%rdi), %r8
    movq    0x48(%rdi), %r9
    movq    0x50(%rdi), %r10
    movq    0x58(%rdi), %r11
    movq    0x60(%rdi), %r12
    movq    0x68(%rdi), %r13
    movq    0x70(%rdi), %r14
    movq    0x78(%rdi), %r15
    movq    0x38(%rdi), %rdi
    jnz     6f
    vmlaunch
    jmp     7f
6:  vmresume
7:  movl    $1, %eax
    movl    $2, %ecx
    cmovc   %ecx, %eax
    popq    %rdi
    jmp     8f

.global mz_guest_exit
mz_guest_exit:
    pushq   %rdi
    movq    8(%rsp), %rdi
    movq    %rax, 0x00(%rdi)
    movq    %rcx, 0x08(%rdi)
    movq    %rdx, 0x10(%rdi)
    movq    %rbx, 0x18(%rdi)
    movq    %rbp, 0x28(%rdi)
    movq    %rsi, 0x30(%rdi)
    popq    %rax
    movq    %rax, 0x38(%rdi)
    movq    %r8, 0x40(%rdi)
    movq    %r9, 0x48(%rdi)
    movq    %r10, 0x50(%rdi)
    movq    %r11, 0x58(%rdi)
    movq    %r12, 0x60(%rdi)
    movq    %r13, 0x68(%rdi)
    movq    %r14, 0x70(%rdi)
    movq    %r15, 0x78(%rdi)
    popq    %rdi
    xorl    %eax, %eax
8:  popq    %r15
    popq    %r14
    popq    %r13
    popq    %r12
    popq    %rbx
    popq    %rbp
    ret
