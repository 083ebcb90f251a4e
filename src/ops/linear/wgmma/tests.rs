use super::*;

const SMS: usize = 132;

fn plan(m: usize, n: usize, k: usize) -> Plan {
    choose(&WgmmaTile::ALL, [m, n, k], SMS, 64 << 20, 64 << 10)
}

fn team_plan(m: usize, n: usize, k: usize) -> Plan {
    choose(&WgmmaTile::TEAMS, [m, n, k], SMS, 64 << 20, 64 << 10)
}

#[test]
fn shared_memory_fits_beside_what_the_kernel_declares() {
    for tile in WgmmaTile::ALL {
        // Staging of the epilogue, barriers and flags, and the 1 KiB that every resident CTA costs.
        let declared = tile.consumers() * 10240 + 256;
        assert!(tile.ctas * (tile.smem_bytes() + declared + 1024) <= 228 << 10, "{}", tile.variant());
    }
    assert_eq!(WgmmaTile::ALL[0].smem_bytes(), 197_632);
    assert_eq!(WgmmaTile::ALL[0].variant(), "_128x256x4");
}

#[test]
fn teams_fit_in_shared_memory_and_registers() {
    for tile in WgmmaTile::TEAMS.into_iter().chain(WgmmaTile::SLIM) {
        let consumers = if tile.team == Team::Two { 2 } else { tile.consumers() };
        // Staging, and bias and scale of whole chunks of 32 columns; barriers.
        let declared = consumers * (10240 + 4 * tile.bn.next_multiple_of(32)) + 256;
        let per_cta = tile.smem_bytes() + declared;
        assert!(per_cta <= 227 << 10 && tile.ctas * (per_cta + 1024) <= 228 << 10, "{}", tile.variant());
        // Sums of a thread, beside some forty registers of the epilogue.
        let sums = tile.bm * tile.bn / (128 * if tile.team == Team::Two { 1 } else { consumers });
        let most = match (consumers, tile.ctas) {
            (2, 2) => 48,
            (3, _) => 96,
            _ => 128,
        };
        assert!(sums <= most, "{}", tile.variant());
    }
    assert_eq!(WgmmaTile::TEAMS[0].variant(), "_1x192x192x4");
}

#[test]
fn pairs_fit_and_halve_what_they_share() {
    for tile in WgmmaTile::PAIRS {
        let consumers = if tile.team == Team::Two { 2 } else { tile.consumers() };
        let declared = consumers * (10240 + 4 * tile.bn.next_multiple_of(32)) + 256;
        assert!(tile.smem_bytes() + declared <= 227 << 10, "{}", tile.variant());
        // Both halves of a box begin at a group of 8 rows.
        let (x, w) = tile.boxes();
        assert!(x % 8 == 0 && w % 8 == 0 && x * w * 2 == tile.bm * tile.bn, "{}", tile.variant());
    }
    assert_eq!(WgmmaTile::PAIRS[0].variant(), "_w1x128x256x4");
    let plan = |tile| Plan { tile, splits: 2 };
    // 9 row blocks are 5 pairs, of which one lies half outside; 4 column blocks are 2.
    let below = plan(WgmmaTile::PAIRS[0]);
    assert_eq!((below.tiles(1025, 1024), below.cluster()), (10 * 4, 2));
    assert_eq!((below.grid(1025, 1024, 132), below.grid(1025, 4096, 131)), (80, 130));
    assert_eq!(below.counters(1025, 1024), 10 * 4 * 2);
    let beside = plan(WgmmaTile::PAIRS[6]);
    assert_eq!((beside.tile.shared, beside.tiles(1025, 1024), beside.tiles(1, 257)), (Shared::X, 9 * 4, 2));
}

#[test]
fn grids_fit_in_shared_memory_registers_and_clusters() {
    for tile in WgmmaTile::GRIDS {
        let Team::Grid(Grid { turned, ca, cb }) = tile.team else { panic!("{tile:?}") };
        let (a, b) = if turned { (tile.bn, tile.bm) } else { (tile.bm, tile.bn) };
        // Blocks of 64 rows, one or two per warpgroup of at most three.
        let consumers = if a == 256 { 2 } else { a / 64 };
        let halves = a / 64 / consumers;
        let staging = if turned { 2 * 32 * 36 } else { 4 * 16 * 40 };
        let declared =
            consumers * (4 * staging + 4 * tile.bn.next_multiple_of(32)) + 24 * tile.stages;
        assert!(tile.smem_bytes() + declared <= 227 << 10, "{}", tile.variant());
        assert!(halves * b / 2 <= [0, 104, 152, 88][consumers], "{}: sums of a thread", tile.variant());
        assert!(a % 64 == 0 && b % 8 == 0 && ca * cb <= WgmmaTile::MOST_CTAS_PER_CLUSTER);
        assert_eq!(tile.boxes(), (tile.bm, tile.bn));
        assert_eq!(tile.takes(true), tile.bn % 16 == 0);
    }
    let named = |name: &str| *WgmmaTile::GRIDS.iter().find(|t| t.grid_name() == name).unwrap();
    assert_eq!(named("t128x80_4x2").variant(), "_t128x80x7_4x2");
    assert_eq!(named("d64x72_2x1").variant(), "_d64x72x12_2x1");
    let plan = |name| Plan { tile: named(name), splits: 1 };
    // 13 row blocks of 80 are 7 pairs; 8 column blocks of 128 are 2 fours.
    let picture = plan("t128x80_4x2");
    assert_eq!((picture.tiles(1025, 1024), picture.cluster(), picture.grid(1025, 1024, 132)), (112, 8, 112));
    assert_eq!((picture.counters(1025, 1024), picture.partial_bytes(1025, 1024)), (0, 0));
    // Two row blocks of 64 share w.
    let text = plan("d64x72_2x1");
    assert_eq!((text.tiles(128, 4608), text.tiles(65, 72), text.tiles(64, 72)), (128, 2, 2));
    assert_eq!((text.grid(128, 4608, 132), text.grid(4096, 4608, 133)), (128, 132));
    assert!(text.fits([128, 4608, 3584], 0, 0) && !Plan { splits: 2, ..text }.fits([128, 4608, 3584], 1 << 30, 1 << 20));
}

#[test]
fn tiles_are_what_the_kernels_are_built_of() {
    let all = WgmmaTile::ALL.into_iter().chain(WgmmaTile::TEAMS);
    for tile in all.chain(WgmmaTile::SLIM).chain(WgmmaTile::PAIRS) {
        assert!(tile.bn % 16 == 0 && tile.bm % 64 == 0, "{tile:?}");
    }
}

#[test]
fn one_picture_is_one_wave_of_teams() {
    for (n, k) in [(3072, 1024), (4096, 1024), (1024, 1024), (1024, 4096)] {
        let plan = team_plan(1025, n, k);
        assert!(plan.tiles(1025, n) * plan.splits <= SMS * plan.tile.ctas, "{n} {k}: {plan:?}");
    }
}

#[test]
fn windows_share_k_in_clusters_without_scratch() {
    for (shape, clusters) in [([125, 2048, 5120], 16), ([375, 2048, 5120], 48), ([1, 256, 640], 4)] {
        let plan = of_windows(shape, SMS).unwrap();
        assert!(plan.tile.takes_windows() && plan.tiles(shape[0], shape[1]) <= clusters, "{plan:?}");
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
    for Measured { shape: [m, n, k], tile, splits } in MEASURED {
        let plan = measured([m, n, k]).unwrap();
        assert_eq!(
            ((plan.tile.team, plan.tile.bm, plan.tile.bn), plan.splits),
            (tile, splits),
            "{m} {n} {k}"
        );
        assert!(plan.fits([m, n, k], 64 << 20, 64 << 10), "{m} {n} {k}");
    }
    let rows = |m| measured([m, 3584, 3584]).map(|plan| plan.splits);
    assert_eq!([64, 65, 128, 129].map(rows), [None, Some(4), Some(4), None]);
    let picture = |m| measured([m, 1024, 1024]).map(|plan| plan.tile.bn);
    assert_eq!(
        [1024, 1025, 1152, 1153, 4100, 13325].map(picture),
        [None, Some(128), Some(128), None, Some(256), Some(208)]
    );
    assert_eq!(measured([128, 3584, 3592]), None);
}

#[test]
fn layers_of_the_encoders_are_one_round() {
    let layer = [(3072, 1024), (1024, 1024), (4096, 1024), (1024, 4096)];
    for m in [17, 74, 249, 256, 257, 749, 768, 769, 1025, 1152] {
        for (n, k) in layer {
            let plan = of_encoders([m, n, k]).unwrap();
            let units = plan.tiles(m, n) * plan.splits;
            assert!(units <= SMS, "{m} {n} {k}: {plan:?}");
            assert!(plan.fits([m, n, k], 0, 0), "{m} {n} {k}: no scratch is needed");
            // Clusters stay within a GPC, of 16 SMs at least: 8 GPCs.
            let clusters = units / plan.cluster();
            assert!(plan.cluster() == 1 || clusters <= 8 * (16 / plan.cluster()), "{m} {n} {k}: {plan:?}");
            // No plan of the two files moves fewer bytes per SM by more than a third.
            let bytes = |p: &Plan| {
                (p.tile.bm + p.tile.bn)
                    * 128
                    * k.div_ceil(64).div_ceil(p.splits)
                    * (p.tiles(m, n) * p.splits).div_ceil(SMS)
            };
            if m % 64 != 0 && [249, 749, 1025].contains(&m) {
                let least = WgmmaTile::TEAMS
                    .iter()
                    .filter(|t| t.team == plan.tile.team)
                    .map(|&tile| bytes(&Plan { tile, splits: plan.splits }));
                assert!(bytes(&plan) * 2 <= least.min().unwrap() * 3, "{m} {n} {k}: {plan:?}");
            }
        }
    }
    for other in [[1153, 1024, 1024], [249, 3584, 2048], [13325, 3072, 1024]] {
        assert_eq!(of_encoders(other), None, "{other:?}");
    }
}

/// `Cursor::skip` of the kernel lands where as many steps do: the teams agree with the producer about the ring.
#[test]
fn skipped_steps_count_like_steps() {
    for stages in [5, 6] {
        for steps in [1, 2, 5, 6, 7, 16, 64] {
            for units in 1..6 {
                // Ring positions in the order in which the teams, in turns, wait for them.
                let waits = (0..units).flat_map(|unit| {
                    let (mut stage, mut phase) = (0, 0);
                    // Cursor::skip, unit by unit, as both teams do.
                    for _ in 0..unit {
                        stage += steps;
                        phase ^= (stage / stages) % 2;
                        stage %= stages;
                    }
                    (0..steps).map(move |_| {
                        let at = (stage, phase);
                        stage += 1;
                        if stage == stages {
                            (stage, phase) = (0, phase ^ 1);
                        }
                        at
                    })
                });
                for (position, (stage, phase)) in waits.enumerate() {
                    assert_eq!((stage, phase), (position % stages, position / stages % 2));
                }
            }
        }
    }
}

#[test]
fn large_products_take_large_tiles_and_no_split() {
    for (m, n, k) in [(2048, 37888, 3584), (4096, 4096, 4096), (4096, 37888, 3584)] {
        let Plan { tile, splits, .. } = plan(m, n, k);
        assert_eq!((tile.bm, splits), (128, 1), "{m} {n} {k}");
        assert!(tile.bn >= 192, "{m} {n} {k}: {tile:?}");
    }
}

#[test]
fn few_tiles_split_k() {
    for (m, n, k) in [(17, 3584, 18944), (64, 1024, 4096), (128, 3584, 18944), (249, 1024, 19456)] {
        assert!(plan(m, n, k).splits > 1, "{m} {n} {k}");
    }
}

#[test]
fn plans_stay_within_steps_scratch_counters_and_chip() {
    for m in [17, 64, 65, 127, 129, 1025, 13325] {
        for n in [8, 515, 3072, 37888] {
            for k in [8, 80, 1024, 18944] {
                for (sms, scratch, counters) in [(132, 64 << 20, 64 << 10), (114, 1 << 20, 16), (1, 0, 0)] {
                    for tiles in [&WgmmaTile::ALL[..], &WgmmaTile::TEAMS[..]] {
                        let plan = choose(tiles, [m, n, k], sms, scratch, counters);
                        assert!((1..=k.div_ceil(64)).contains(&plan.splits), "{m} {n} {k}: {plan:?}");
                        assert!(plan.partial_bytes(m, n) <= scratch && plan.counters(m, n) <= counters);
                        let grid = plan.grid(m, n, sms);
                        assert!(grid >= 1 && grid.is_multiple_of(plan.cluster()));
                        assert!(grid <= sms * plan.tile.ctas || plan.tile.team == Team::Cluster);
                    }
                }
            }
        }
    }
}
