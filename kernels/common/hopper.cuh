// What only sm_90a has, one instruction per wrapper: mbarrier, TMA, clusters, wgmma, setmaxnreg.
#pragma once
#include "common/mma.cuh"

// The 128 opaque bytes of a CUtensorMap; lives in the kernel's parameters.
struct alignas(128) TensorMap {
    uint64_t opaque[16];
};

// --- mbarrier: 8 bytes of shared memory, by address. A phase ends when `count` arrivals and all expected bytes are
// in. A wait names the parity of the phase it waits for; on a fresh barrier a wait for parity 1 passes at once.
__device__ __forceinline__ void mbarrier_init(uint32_t barrier, uint32_t count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(count) : "memory");
}
// Makes the initialised barriers visible to the copy engine; a barrier of threads follows.
__device__ __forceinline__ void fence_mbarrier_init() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
__device__ __forceinline__ void mbarrier_expect_tx(uint32_t barrier, uint32_t bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
__device__ __forceinline__ void mbarrier_arrive(uint32_t barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
__device__ __forceinline__ void mbarrier_wait(uint32_t barrier, uint32_t parity) {
    asm volatile(
        "{\n"
        ".reg .pred done;\n"
        "again:\n"
        "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
        "@done bra ready;\n"
        "bra again;\n"
        "ready:\n"
        "}" ::"r"(barrier), "r"(parity)
        : "memory");
}

// --- TMA. `map` is the address of a __grid_constant__ parameter; coordinates are elements, innermost first, and may
// lie outside (zeros, counted in full). One thread issues.
__device__ __forceinline__ void prefetch_tensor_map(const TensorMap& map) {
    asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}
__device__ __forceinline__ void tma_load_2d(uint32_t dst, const TensorMap& map, uint32_t barrier, int32_t c0,
                                            int32_t c1) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];" ::
            "r"(dst),
        "l"(&map), "r"(barrier), "r"(c0), "r"(c1)
        : "memory");
}
// The same; `policy` says what becomes of it in the L2 (ops/linear/wgmma.rs).
__device__ __forceinline__ void tma_load_2d(uint32_t dst, const TensorMap& map, uint32_t barrier, int32_t c0, int32_t c1,
                                            uint64_t policy) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1, {%3, %4}], "
        "[%2], %5;" ::"r"(dst),
        "l"(&map), "r"(barrier), "r"(c0), "r"(c1), "l"(policy)
        : "memory");
}
// To the same place of every CTA of the cluster whose bit is set, where the barrier at the same place counts the bytes.
__device__ __forceinline__ void tma_load_2d_to_cluster(uint32_t dst, const TensorMap& map, uint32_t barrier, int32_t c0,
                                                       int32_t c1, uint16_t ctas) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], "
        "[%1, {%3, %4}], [%2], %5;" ::"r"(dst),
        "l"(&map), "r"(barrier), "r"(c0), "r"(c1), "h"(ctas)
        : "memory");
}
__device__ __forceinline__ void tma_load_2d_to_cluster(uint32_t dst, const TensorMap& map, uint32_t barrier, int32_t c0,
                                                       int32_t c1, uint16_t ctas, uint64_t policy) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster.L2::cache_hint "
        "[%0], [%1, {%3, %4}], [%2], %5, %6;" ::"r"(dst),
        "l"(&map), "r"(barrier), "r"(c0), "r"(c1), "h"(ctas), "l"(policy)
        : "memory");
}
__device__ __forceinline__ void tma_load_3d(uint32_t dst, const TensorMap& map, uint32_t barrier, int32_t c0,
                                            int32_t c1, int32_t c2) {
    asm volatile(
        "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5}], [%2];" ::
            "r"(dst),
        "l"(&map), "r"(barrier), "r"(c0), "r"(c1), "r"(c2)
        : "memory");
}
__device__ __forceinline__ void tma_load_4d(uint32_t dst, const TensorMap& map, uint32_t barrier, int32_t c0,
                                            int32_t c1, int32_t c2, int32_t c3) {
    asm volatile(
        "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], "
        "[%1, {%3, %4, %5, %6}], [%2];" ::"r"(dst),
        "l"(&map), "r"(barrier), "r"(c0), "r"(c1), "r"(c2), "r"(c3)
        : "memory");
}
__device__ __forceinline__ void tma_load_5d(uint32_t dst, const TensorMap& map, uint32_t barrier, int32_t c0,
                                            int32_t c1, int32_t c2, int32_t c3, int32_t c4) {
    asm volatile(
        "cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], "
        "[%1, {%3, %4, %5, %6, %7}], [%2];" ::"r"(dst),
        "l"(&map), "r"(barrier), "r"(c0), "r"(c1), "r"(c2), "r"(c3), "r"(c4)
        : "memory");
}
// What this thread stored to shared memory, before what wgmma or the copy engine do after the next barrier.
__device__ __forceinline__ void fence_async_proxy() {
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// --- Clusters. A barrier of all threads of all CTAs that have not exited: what a CTA has initialised before it arrives
// (and `fence_mbarrier_init`) others may use behind the wait. `publish`: so is what was stored before, at the price of a
// fence for the whole GPU.
__device__ __forceinline__ void cluster_arrive(bool publish = false) {
    if (publish)
        asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
    else
        asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
}
__device__ __forceinline__ void cluster_wait() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }
// Which CTA of its cluster this is.
__device__ __forceinline__ uint32_t cluster_rank() {
    uint32_t rank;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}
// Arrives at a barrier of another CTA; its address from `cluster_address`. Without `.release.cluster`, which would be a
// fence for the whole GPU: for stages that wgmma has read, where nothing that threads have stored is handed over.
__device__ __forceinline__ void mbarrier_arrive_cluster(uint32_t barrier) {
    asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(barrier) : "memory");
}
// The address in the CTA `rank` of the cluster of what has `address` here.
__device__ __forceinline__ uint32_t cluster_address(uint32_t address, uint32_t rank) {
    uint32_t remote;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(remote) : "r"(address), "r"(rank));
    return remote;
}
// 16 bytes of such a place.
__device__ __forceinline__ float4 load_cluster(uint32_t address) {
    float4 v;
    asm volatile("ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [%4];"
                 : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
                 : "r"(address)
                 : "memory");
    return v;
}
// Stores to a CTA of the cluster; its barrier counts the bytes. Both addresses from `cluster_address`.
__device__ __forceinline__ void cluster_store(uint32_t dst, float x, uint32_t barrier) {
    asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.f32 [%0], %1, [%2];" ::"r"(dst), "f"(x),
                 "r"(barrier)
                 : "memory");
}
__device__ __forceinline__ void cluster_store(uint32_t dst, float x, float y, uint32_t barrier) {
    asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v2.f32 [%0], {%1, %2}, [%3];" ::"r"(dst),
                 "f"(x), "f"(y), "r"(barrier)
                 : "memory");
}
__device__ __forceinline__ void cluster_store(uint32_t dst, float x, float y, float z, float w, uint32_t barrier) {
    asm volatile(
        "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(dst),
        "f"(x), "f"(y), "f"(z), "f"(w), "r"(barrier)
        : "memory");
}
// `mbarrier_wait` for what other CTAs have stored.
__device__ __forceinline__ void cluster_mbarrier_wait(uint32_t barrier, uint32_t parity) {
    asm volatile(
        "{\n"
        ".reg .pred done;\n"
        "again:\n"
        "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%0], %1;\n"
        "@done bra ready;\n"
        "bra again;\n"
        "ready:\n"
        "}" ::"r"(barrier), "r"(parity)
        : "memory");
}

// --- Threads.
// True in one lane of a converged warp.
__device__ __forceinline__ bool elect_one() {
    uint32_t elected;
    asm volatile(
        "{\n"
        ".reg .pred p;\n"
        "elect.sync _|p, 0xffffffff;\n"
        "selp.u32 %0, 1, 0, p;\n"
        "}"
        : "=r"(elected));
    return elected != 0;
}
// A barrier of `THREADS` threads; id 0 is __syncthreads().
template <int ID, int THREADS>
__device__ __forceinline__ void named_barrier() {
    asm volatile("bar.sync %0, %1;" ::"n"(ID), "n"(THREADS) : "memory");
}
// An arrival without waiting.
template <int ID, int THREADS>
__device__ __forceinline__ void named_barrier_arrive() {
    asm volatile("bar.arrive %0, %1;" ::"n"(ID), "n"(THREADS) : "memory");
}
// The same two by a computed id; ptxas then reserves all sixteen.
template <int THREADS>
__device__ __forceinline__ void barrier_sync(uint32_t id) {
    asm volatile("bar.sync %0, %1;" ::"r"(id), "n"(THREADS) : "memory");
}
template <int THREADS>
__device__ __forceinline__ void barrier_arrive(uint32_t id) {
    asm volatile("bar.arrive %0, %1;" ::"r"(id), "n"(THREADS) : "memory");
}
// Registers of this thread from here on; executed by a whole warpgroup.
template <int REGISTERS>
__device__ __forceinline__ void take_registers() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}
template <int REGISTERS>
__device__ __forceinline__ void give_registers() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}

// `bytes` from global to shared memory, both multiples of 16, which `barrier` counts.
__device__ __forceinline__ void bulk_load(uint32_t to, const void* from, uint32_t bytes, uint32_t barrier) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to),
                 "l"(from), "r"(bytes), "r"(barrier)
                 : "memory");
}

// --- wgmma. Operands are K-major tiles of 64 16-bit columns, 128-byte rows, as TMA writes them with the 128-byte
// swizzle from an address that is a multiple of 1024. The next 16 columns are 2 further in the descriptor.
__device__ __forceinline__ uint64_t wgmma_descriptor(uint32_t address) {
    constexpr uint64_t GROUP_OF_8_ROWS = 1024 >> 4, SWIZZLE_128B = 1;
    return uint64_t(address >> 4) | uint64_t(1) << 16 | GROUP_OF_8_ROWS << 32 | SWIZZLE_128B << 62;
}
// A B operand whose rows are k (V of attention): slabs of 64 columns, `slab_bytes` apart, rows of 128 bytes as above.
// The next 16 rows are 128 further in the descriptor. In a cluster addresses have the CTA in their upper bits, which would
// count as bytes between slabs.
__device__ __forceinline__ uint64_t wgmma_descriptor_rows_of_k(uint32_t address, uint32_t slab_bytes) {
    constexpr uint64_t GROUP_OF_8_ROWS = 1024 >> 4, SWIZZLE_128B = 1;
    return uint64_t((address & 0x3ffff) >> 4) | uint64_t(slab_bytes >> 4) << 16 | GROUP_OF_8_ROWS << 32 | SWIZZLE_128B << 62;
}
__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Waits until at most `PENDING` committed batches run.
template <int PENDING>
__device__ __forceinline__ void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}
// Keeps the compiler from reading accumulators before the wait above.
template <int COUNT>
__device__ __forceinline__ void wgmma_settle(float (&d)[COUNT]) {
#pragma unroll
    for (int i = 0; i < COUNT; i++) asm volatile("" : "+f"(d[i])::"memory");
}

// Names and registers of the first COUNT accumulators.
#define WGMMA_NAMES_4 "%0, %1, %2, %3"
#define WGMMA_NAMES_8 WGMMA_NAMES_4 ", %4, %5, %6, %7"
#define WGMMA_NAMES_12 WGMMA_NAMES_8 ", %8, %9, %10, %11"
#define WGMMA_NAMES_16 WGMMA_NAMES_12 ", %12, %13, %14, %15"
#define WGMMA_NAMES_20 WGMMA_NAMES_16 ", %16, %17, %18, %19"
#define WGMMA_NAMES_24 WGMMA_NAMES_20 ", %20, %21, %22, %23"
#define WGMMA_NAMES_28 WGMMA_NAMES_24 ", %24, %25, %26, %27"
#define WGMMA_NAMES_32 WGMMA_NAMES_28 ", %28, %29, %30, %31"
#define WGMMA_NAMES_36 WGMMA_NAMES_32 ", %32, %33, %34, %35"
#define WGMMA_NAMES_40 WGMMA_NAMES_36 ", %36, %37, %38, %39"
#define WGMMA_NAMES_44 WGMMA_NAMES_40 ", %40, %41, %42, %43"
#define WGMMA_NAMES_48 WGMMA_NAMES_44 ", %44, %45, %46, %47"
#define WGMMA_NAMES_52 WGMMA_NAMES_48 ", %48, %49, %50, %51"
#define WGMMA_NAMES_56 WGMMA_NAMES_52 ", %52, %53, %54, %55"
#define WGMMA_NAMES_60 WGMMA_NAMES_56 ", %56, %57, %58, %59"
#define WGMMA_NAMES_64 WGMMA_NAMES_60 ", %60, %61, %62, %63"
#define WGMMA_NAMES_68 WGMMA_NAMES_64 ", %64, %65, %66, %67"
#define WGMMA_NAMES_72 WGMMA_NAMES_68 ", %68, %69, %70, %71"
#define WGMMA_NAMES_76 WGMMA_NAMES_72 ", %72, %73, %74, %75"
#define WGMMA_NAMES_80 WGMMA_NAMES_76 ", %76, %77, %78, %79"
#define WGMMA_NAMES_84 WGMMA_NAMES_80 ", %80, %81, %82, %83"
#define WGMMA_NAMES_88 WGMMA_NAMES_84 ", %84, %85, %86, %87"
#define WGMMA_NAMES_92 WGMMA_NAMES_88 ", %88, %89, %90, %91"
#define WGMMA_NAMES_96 WGMMA_NAMES_92 ", %92, %93, %94, %95"
#define WGMMA_NAMES_100 WGMMA_NAMES_96 ", %96, %97, %98, %99"
#define WGMMA_NAMES_104 WGMMA_NAMES_100 ", %100, %101, %102, %103"
#define WGMMA_NAMES_108 WGMMA_NAMES_104 ", %104, %105, %106, %107"
#define WGMMA_NAMES_112 WGMMA_NAMES_108 ", %108, %109, %110, %111"
#define WGMMA_NAMES_116 WGMMA_NAMES_112 ", %112, %113, %114, %115"
#define WGMMA_NAMES_120 WGMMA_NAMES_116 ", %116, %117, %118, %119"
#define WGMMA_NAMES_124 WGMMA_NAMES_120 ", %120, %121, %122, %123"
#define WGMMA_NAMES_128 WGMMA_NAMES_124 ", %124, %125, %126, %127"
#define WGMMA_4_FROM(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define WGMMA_REGS_4 WGMMA_4_FROM(0)
#define WGMMA_REGS_8 WGMMA_REGS_4, WGMMA_4_FROM(4)
#define WGMMA_REGS_12 WGMMA_REGS_8, WGMMA_4_FROM(8)
#define WGMMA_REGS_16 WGMMA_REGS_12, WGMMA_4_FROM(12)
#define WGMMA_REGS_20 WGMMA_REGS_16, WGMMA_4_FROM(16)
#define WGMMA_REGS_24 WGMMA_REGS_20, WGMMA_4_FROM(20)
#define WGMMA_REGS_28 WGMMA_REGS_24, WGMMA_4_FROM(24)
#define WGMMA_REGS_32 WGMMA_REGS_28, WGMMA_4_FROM(28)
#define WGMMA_REGS_36 WGMMA_REGS_32, WGMMA_4_FROM(32)
#define WGMMA_REGS_40 WGMMA_REGS_36, WGMMA_4_FROM(36)
#define WGMMA_REGS_44 WGMMA_REGS_40, WGMMA_4_FROM(40)
#define WGMMA_REGS_48 WGMMA_REGS_44, WGMMA_4_FROM(44)
#define WGMMA_REGS_52 WGMMA_REGS_48, WGMMA_4_FROM(48)
#define WGMMA_REGS_56 WGMMA_REGS_52, WGMMA_4_FROM(52)
#define WGMMA_REGS_60 WGMMA_REGS_56, WGMMA_4_FROM(56)
#define WGMMA_REGS_64 WGMMA_REGS_60, WGMMA_4_FROM(60)
#define WGMMA_REGS_68 WGMMA_REGS_64, WGMMA_4_FROM(64)
#define WGMMA_REGS_72 WGMMA_REGS_68, WGMMA_4_FROM(68)
#define WGMMA_REGS_76 WGMMA_REGS_72, WGMMA_4_FROM(72)
#define WGMMA_REGS_80 WGMMA_REGS_76, WGMMA_4_FROM(76)
#define WGMMA_REGS_84 WGMMA_REGS_80, WGMMA_4_FROM(80)
#define WGMMA_REGS_88 WGMMA_REGS_84, WGMMA_4_FROM(84)
#define WGMMA_REGS_92 WGMMA_REGS_88, WGMMA_4_FROM(88)
#define WGMMA_REGS_96 WGMMA_REGS_92, WGMMA_4_FROM(92)
#define WGMMA_REGS_100 WGMMA_REGS_96, WGMMA_4_FROM(96)
#define WGMMA_REGS_104 WGMMA_REGS_100, WGMMA_4_FROM(100)
#define WGMMA_REGS_108 WGMMA_REGS_104, WGMMA_4_FROM(104)
#define WGMMA_REGS_112 WGMMA_REGS_108, WGMMA_4_FROM(108)
#define WGMMA_REGS_116 WGMMA_REGS_112, WGMMA_4_FROM(112)
#define WGMMA_REGS_120 WGMMA_REGS_116, WGMMA_4_FROM(116)
#define WGMMA_REGS_124 WGMMA_REGS_120, WGMMA_4_FROM(120)
#define WGMMA_REGS_128 WGMMA_REGS_124, WGMMA_4_FROM(124)
#define WGMMA(N, TYPE, COUNT, A, B, KEEP)                                                           \
    asm volatile(                                                                                   \
        "{\n"                                                                                       \
        ".reg .pred keep;\n"                                                                        \
        "setp.ne.b32 keep, %" KEEP ", 0;\n"                                                         \
        "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPE "." TYPE " {" WGMMA_NAMES_##COUNT "}, " \
        "%" A ", %" B ", keep, 1, 1, 0, 0;\n"                                                       \
        "}"                                                                                         \
        : WGMMA_REGS_##COUNT                                                                        \
        : "l"(a), "l"(b), "r"(keep))
#define WGMMA_ANY(TYPE)                                                                           \
    if constexpr (N == 16) WGMMA(16, TYPE, 8, "8", "9", "10");                                    \
    if constexpr (N == 64) WGMMA(64, TYPE, 32, "32", "33", "34");                                 \
    if constexpr (N == 72) WGMMA(72, TYPE, 36, "36", "37", "38");                                 \
    if constexpr (N == 80) WGMMA(80, TYPE, 40, "40", "41", "42");                                 \
    if constexpr (N == 96) WGMMA(96, TYPE, 48, "48", "49", "50");                                 \
    if constexpr (N == 104) WGMMA(104, TYPE, 52, "52", "53", "54");                               \
    if constexpr (N == 112) WGMMA(112, TYPE, 56, "56", "57", "58");                               \
    if constexpr (N == 120) WGMMA(120, TYPE, 60, "60", "61", "62");                               \
    if constexpr (N == 128) WGMMA(128, TYPE, 64, "64", "65", "66");                               \
    if constexpr (N == 136) WGMMA(136, TYPE, 68, "68", "69", "70");                               \
    if constexpr (N == 144) WGMMA(144, TYPE, 72, "72", "73", "74");                               \
    if constexpr (N == 152) WGMMA(152, TYPE, 76, "76", "77", "78");                               \
    if constexpr (N == 176) WGMMA(176, TYPE, 88, "88", "89", "90");                               \
    if constexpr (N == 192) WGMMA(192, TYPE, 96, "96", "97", "98");                               \
    if constexpr (N == 208) WGMMA(208, TYPE, 104, "104", "105", "106");                           \
    if constexpr (N == 224) WGMMA(224, TYPE, 112, "112", "113", "114");                           \
    if constexpr (N == 256) WGMMA(256, TYPE, 128, "128", "129", "130")

template <class T>
struct IsBf16 {
    static constexpr bool value = false;
};
template <>
struct IsBf16<__nv_bfloat16> {
    static constexpr bool value = true;
};

__host__ __device__ constexpr bool wgmma_takes(int n) {
    for (int width : {16, 64, 72, 80, 96, 104, 112, 120, 128, 136, 144, 152, 176, 192, 208, 224, 256})
        if (n == width) return true;
    return false;
}

// d = a bᵀ, or d += a bᵀ with `keep`: a 64x16, b Nx16. Thread i of the warpgroup holds in d[4j + 2h + c] the row
// i / 32 · 16 + 8h + i % 32 / 4 and the column 8j + 2 (i % 4) + c.
template <class T, int N>
__device__ __forceinline__ void wgmma(float (&d)[N / 2], uint64_t a, uint64_t b, uint32_t keep) {
    static_assert(wgmma_takes(N), "no wrapper for this width");
    if constexpr (IsBf16<T>::value) {
        WGMMA_ANY("bf16");
    } else {
        WGMMA_ANY("f16");
    }
}

#define WGMMA_FROM_REGISTERS(N, TYPE, NAMES, REGS, A, B)                                            \
    asm volatile("wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPE "." TYPE " {" NAMES "}, "   \
                 "{" A "}, %" B ", 1, 1, 1, 1;"                                                     \
                 : REGS                                                                             \
                 : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "l"(b))
#define WGMMA_FROM_REGISTERS_ANY(TYPE)                                                              \
    if constexpr (N == 64)                                                                          \
        WGMMA_FROM_REGISTERS(64, TYPE, WGMMA_NAMES_32, WGMMA_REGS_32, "%32, %33, %34, %35", "36"); \
    if constexpr (N == 72)                                                                          \
        WGMMA_FROM_REGISTERS(72, TYPE, WGMMA_NAMES_36, WGMMA_REGS_36, "%36, %37, %38, %39", "40"); \
    if constexpr (N == 128)                                                                         \
        WGMMA_FROM_REGISTERS(128, TYPE, WGMMA_NAMES_64, WGMMA_REGS_64, "%64, %65, %66, %67", "68")

// d += a b: a 64x16 from registers, b 16xN by its rows (`wgmma_descriptor_rows_of_k`). Of a a thread holds pairs of
// neighbours along k: (row g, k 2t), (g + 8, 2t), (g, 2t + 8), (g + 8, 2t + 8), with g = i % 32 / 4 and t = i % 4. So
// d[8j..8j + 8] above, packed in order, are the a of step j of a product that follows.
template <class T, int N>
__device__ __forceinline__ void wgmma_from_registers(float (&d)[N / 2], uint32_t a0, uint32_t a1, uint32_t a2,
                                                     uint32_t a3, uint64_t b) {
    static_assert(N == 64 || N == 72 || N == 128, "no wrapper for this width");
    if constexpr (IsBf16<T>::value) {
        WGMMA_FROM_REGISTERS_ANY("bf16");
    } else {
        WGMMA_FROM_REGISTERS_ANY("f16");
    }
}
