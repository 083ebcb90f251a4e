use super::*;
use crate::ops::linear::gains_behind_norm;

const SMS: usize = 132;

fn bounds() -> Bounds {
    Bounds { sm_count: SMS, scratch_bytes: 64 << 20, counters: 64 << 10, end: End::Plain, vectors: true }
}

#[test]
fn shared_memory_fits_beside_what_the_kernel_declares() {
    for tile in WgmmaTile::PLAIN.into_iter().chain(WgmmaTile::WINDOWS) {
        // Staging, and bias and scale of whole chunks of 32 columns; barriers, and the 1 KiB of every resident CTA.
        let declared = tile.consumers() * (10240 + 4 * tile.bn.next_multiple_of(32)) + 256;
        assert!(tile.ctas * (tile.smem_bytes() + declared + 1024) <= 228 << 10, "{}", tile.variant());
    }
    assert_eq!(WgmmaTile::PLAIN[0].smem_bytes(), 197_632);
    assert_eq!(WgmmaTile::PLAIN[0].variant(), "_128x256x4");
}

#[test]
fn grids_fit_in_shared_memory_registers_and_clusters() {
    for tile in WgmmaTile::GRIDS {
        let Form::Grid(Grid { turned, ca, cb, ck, pingpong }) = tile.form else { panic!("{tile:?}") };
        let (a, b) = if turned { (tile.bn, tile.bm) } else { (tile.bm, tile.bn) };
        // One or two warpgroups, with one or two blocks of 64 rows each.
        let consumers = if a == 256 || pingpong { 2 } else { a / 64 };
        let halves = if pingpong { a / 64 } else { a / 64 / consumers };
        // A turn of the epilogue, bias and scale of the tile; barriers, and where the former begins.
        let declared = consumers * (8192 + 4 * tile.bn.next_multiple_of(32)) + 24 * tile.stages + 144;
        assert!(tile.smem_bytes() + declared <= 227 << 10, "{}", tile.variant());
        let most_sums = [0, 104, if pingpong { 192 } else { 152 }][consumers];
        assert!(halves * b / 2 <= most_sums, "{}: sums of a thread", tile.variant());
        assert!(a % 64 == 0 && b % 8 == 0 && ca * cb * ck <= WgmmaTile::MOST_CTAS_PER_CLUSTER);
        assert_eq!((tile.takes(End::Gated, true), tile.takes(End::Plain, false)), (tile.bn % 16 == 0, false));
    }
    assert_eq!(named("t128x80_4x2").unwrap().variant(), "_t128x80x8_4x2");
    assert_eq!(named("d64x144_2x1").unwrap().variant(), "_d64x144x8_2x1");
    assert_eq!(named("d128x64_1x4x2").unwrap().variant(), "_d128x64x8_1x4x2");
    let plan = |name| Plan { tile: named(name).unwrap(), splits: 1 };
    // 13 row blocks of 80 are 7 pairs; 8 column blocks of 128 are 2 fours.
    let picture = plan("t128x80_4x2");
    assert_eq!((picture.tiles(1025, 1024), picture.cluster(), picture.grid(1025, 1024, 132)), (112, 8, 112));
    assert_eq!((picture.counters(1025, 1024), picture.partial_bytes(1025, 1024)), (0, 0));
    // Two row blocks of 64 share w; a launch has as many CTAs as are resident.
    let text = plan("d64x144_2x1");
    assert_eq!((text.tiles(128, 4608), text.tiles(65, 144), text.tiles(64, 144)), (64, 2, 2));
    assert_eq!((text.grid(128, 4608, 132), text.grid(4096, 4608, 133)), (64, 132));
    // Four tiles beside one another share x, two parts of K their sums; each cluster is launched.
    let shared = plan("d128x64_1x4x2");
    assert_eq!((shared.tiles(128, 3584), shared.cluster(), shared.grid(128, 3584, 132)), (56, 8, 112));
    assert_eq!((shared.grid(129, 3584, 132), shared.partial_bytes(128, 3584)), (224, 0));
    let fits = |k, splits| Plan { splits, ..shared }.fits([128, 3584, k], 1 << 30, 1 << 20);
    assert!(fits(65, 1) && !fits(64, 1) && !fits(3584, 2));
    // Splits are joined through memory, but of two blocks of 64 rows a warpgroup.
    let split = |name, splits| Plan { splits, ..plan(name) }.fits([128, 4608, 3584], 1 << 30, 1 << 20);
    assert!(split("d64x144_2x1", 2) && split("t64x64_4x2", 3) && !split("t256x96_2x1", 2));
    assert_eq!(Plan { splits: 2, ..text }.partial_bytes(128, 4608), 4 * 64 * 2 * 64 * 144);
}

#[test]
fn tiles_are_what_the_kernels_are_built_of() {
    for tile in WgmmaTile::PLAIN {
        assert!(tile.bn % 16 == 0 && tile.bm % 64 == 0, "{tile:?}");
    }
    let all: Vec<String> = WgmmaTile::PLAIN.iter().chain(&WgmmaTile::GRIDS).map(WgmmaTile::name).collect();
    for (i, name) in all.iter().enumerate() {
        assert!(!all[..i].contains(name), "{name} twice");
        assert_eq!(named(name).unwrap().name(), *name);
    }
}

#[test]
fn windows_share_k_in_clusters_without_scratch() {
    for (shape, clusters) in [([125, 2048, 5120], 16), ([375, 2048, 5120], 48), ([1, 256, 640], 4)] {
        let plan = of_windows(shape, SMS).unwrap();
        assert!(
            WgmmaTile::WINDOWS.contains(&plan.tile) && plan.tiles(shape[0], shape[1]) <= clusters,
            "{plan:?}"
        );
        assert_eq!(plan.partial_bytes(shape[0], shape[1]), 0);
    }
    assert_eq!(of_windows([10, 64, 64], SMS), None);
}

/// `WindowRows` of the kernel: row m + tap / 2 of the even rows or the odd ones is row 2 m + tap of all.
#[test]
fn taps_alternate_between_even_and_odd_rows() {
    for rows in [2usize, 7, 249] {
        for m in 0..rows {
            for tap in 0..5 {
                let (odd, at) = (tap % 2, m + tap / 2);
                let held = if odd == 1 { rows / 2 } else { rows.div_ceil(2) };
                let row = (at < held).then_some(2 * at + odd);
                assert_eq!(row, Some(2 * m + tap).filter(|row| *row < rows), "{rows} {m} {tap}");
            }
        }
    }
}

#[test]
fn measured_plans_hold_around_their_rows() {
    let in_step = |shape| IN_STEP.iter().find(|of| of.shape == shape);
    for of in MEASURED {
        let Measured { shape, tile, splits } = *in_step(of.shape).unwrap_or(&of);
        let plan = measured(shape).unwrap();
        assert_eq!((plan.tile.name().as_str(), plan.splits), (tile, splits), "{shape:?}");
        assert!(bounds().allow(&plan, shape), "{shape:?}");
        // Gates and ups come in groups of 16 rows.
        assert!(shape[1] != 37888 || plan.tile.takes(End::Gated, true), "{shape:?}");
    }
    for of in IN_STEP {
        let alone = MEASURED.iter().find(|alone| alone.shape == of.shape).unwrap();
        assert_ne!((alone.tile, alone.splits), (of.tile, of.splits), "{:?}", of.shape);
    }
    let name = |shape| measured(shape).map(|plan| plan.tile.name());
    let text = |m| name([m, 3584, 18944]);
    assert_eq!([32, 33, 65].map(text), [None, Some("d64x64_1x4x2".into()), Some("d128x64_1x4x2".into())]);
    let picture = |m| name([m, 1024, 1024]);
    assert_eq!([1025, 1040].map(picture), [Some("t128x80_4x2".into()), Some("t128x80_4x2".into())]);
    assert_eq!([1041, 13000].map(picture), [None, None]);
    assert_eq!(name([128, 3584, 3592]), None);
}

/// What is not measured is chosen by estimate, and hardly worse: the same tiles win around the shapes that are.
#[test]
fn estimates_prefer_what_measures_well() {
    let chosen = |shape| {
        let plan = least(WgmmaTile::PLAIN.into_iter().chain(WgmmaTile::GRIDS), shape, &bounds());
        (plan.tile, plan.splits)
    };
    // Many rows: large tiles, or two at a time, whole.
    for shape in [[2048, 37888, 3584], [4096, 4096, 4096], [4096, 37888, 3584], [13325, 4096, 1024]] {
        let (tile, splits) = chosen(shape);
        let sums = if tile.is_pingpong() { 2 } else { 1 } * tile.bm * tile.bn;
        assert!(sums >= 128 * 144 && splits == 1, "{shape:?}: {}/{splits}", tile.name());
    }
    // Few tiles with a deep K: parts of it.
    for shape in [[17, 3584, 18944], [128, 3584, 18944]] {
        let (tile, splits) = chosen(shape);
        assert!(splits * tile.shares_k() > 1, "{shape:?}: {}/{splits}", tile.name());
    }
    // No estimate of the fastest by itself is further than a third from the least.
    for of in MEASURED.iter().filter(|of| of.shape[0] > 16) {
        let at = |plan: Plan| plan.estimate(of.shape, SMS);
        let (tile, splits) = chosen(of.shape);
        let fastest = Plan { tile: named(of.tile).unwrap(), splits: of.splits };
        let ratio = at(fastest) / at(Plan { tile, splits });
        assert!((1.0..1.34).contains(&ratio), "{:?}: {} at {ratio}", of.shape, of.tile);
    }
}

#[test]
fn plans_stay_within_steps_scratch_counters_and_chip() {
    for m in [17, 64, 65, 127, 129, 1025, 13325] {
        for n in [8, 515, 3072, 37888] {
            for k in [8, 80, 1024, 18944] {
                for (sm_count, scratch_bytes, counters) in
                    [(132, 64 << 20, 64 << 10), (114, 1 << 20, 16), (1, 0, 0)]
                {
                    let ends =
                        [(End::Plain, true), (End::Plain, false), (End::Gated, true), (End::Turned, true)];
                    for (end, vectors) in ends {
                        let bounds = Bounds { sm_count, scratch_bytes, counters, end, vectors };
                        let plan = choose([m, n, k], &bounds);
                        assert!((1..=k.div_ceil(64)).contains(&plan.splits), "{m} {n} {k}: {plan:?}");
                        assert!(bounds.allow(&plan, [m, n, k]), "{m} {n} {k}: {plan:?}");
                        let grid = plan.grid(m, n, sm_count);
                        assert!(grid >= 1 && grid.is_multiple_of(plan.cluster()));
                    }
                }
            }
        }
    }
}

#[test]
fn q_k_and_v_have_a_kernel_with_rotation_at_every_length() {
    assert!(WgmmaTile::ROPE.iter().all(|tile| WgmmaTile::GRIDS.contains(tile)));
    let turned = Bounds { end: End::Turned, ..bounds() };
    for m in [17, 32, 64, 128, 192, 256, 320, 512, 1024, 2048, 4096] {
        let plan = choose([m, 4608, 3584], &turned);
        assert!(WgmmaTile::ROPE.contains(&plan.tile), "{m}: {plan:?}");
        // The plan that was measured for the product alone, where there is one.
        if let Some(measured) = measured([m, 4608, 3584]) {
            assert_eq!(plan, measured, "{m}");
        }
    }
}

#[test]
fn the_encoders_products_have_kernels_around_their_norms() {
    let there = |tiles: &[WgmmaTile]| tiles.iter().all(|tile| WgmmaTile::GRIDS.contains(tile));
    assert!(there(&WgmmaTile::BEHIND_NORM) && there(&WgmmaTile::STATS));
    let behind = Bounds { end: End::BehindNorm, ..bounds() };
    for m in [1, 16, 74, 249, 400, 749, 1025, 1499, 2048, 13325] {
        for n in [3072, 4096] {
            let plan = choose([m, n, 1024], &behind);
            assert!(WgmmaTile::BEHIND_NORM.contains(&plan.tile) && plan.splits == 1, "{m} x {n}: {plan:?}");
            // As fast as without a norm, where norms are left to products.
            if let Some(measured) = measured([m, n, 1024]).filter(|_| gains_behind_norm(m)) {
                assert_eq!(plan, measured, "{m} x {n}");
            }
        }
    }
    // A short, a usual and a long sound, and a tile.
    for m in [74, 249, 749, 1025] {
        for k in [1024, 4096] {
            let tile = choose([m, 1024, k], &bounds()).tile;
            assert!(tile.gives_stats(), "{m} rows of {k}: {}", tile.name());
        }
    }
}

#[test]
fn a_short_prompts_products_have_kernels_around_their_norms() {
    let lists = [WgmmaTile::GATED_BEHIND_RMS, WgmmaTile::ROPE_BEHIND_RMS, WgmmaTile::BEGINS_RMS];
    assert!(lists.iter().flatten().all(|tile| WgmmaTile::GRIDS.contains(tile)));
    let products = [(End::GatedBehindRms, 37888, &lists[0]), (End::TurnedBehindRms, 4608, &lists[1])];
    for m in [17, 32, 64, 65, 100, 128, 300] {
        for (end, n, tiles) in products {
            let plan = choose([m, n, 3584], &Bounds { end, ..bounds() });
            assert!(tiles.contains(&plan.tile) && plan.splits == 1, "{m} x {n}: {plan:?}");
        }
    }
    // The plans of the products without a norm.
    for m in [33, 64, 65, 128] {
        for (end, n, _) in products {
            assert_eq!(
                Some(choose([m, n, 3584], &Bounds { end, ..bounds() })),
                measured([m, n, 3584]),
                "{m} x {n}"
            );
        }
        for k in [3584, 18944] {
            assert!(choose([m, 3584, k], &bounds()).begins_norms(), "{m} rows of {k}");
        }
    }
    // Where K is shared it has a step for each part.
    let turned = Bounds { end: End::TurnedBehindRms, ..bounds() };
    let allowed = |k| turned.allow(&choose([64, 4608, k], &turned), [64, 4608, k]);
    assert!(allowed(96) && !allowed(64));
}

#[test]
fn weights_that_are_read_once_leave_the_l2_first() {
    let first = policy_of_weights(1);
    assert!([16, 128, 1025].iter().all(|&m| policy_of_weights(m) == first));
    assert!([2048, 13325].iter().all(|&m| policy_of_weights(m) != first));
}
