use super::*;

fn text(ids: &[u32]) -> Vec<Key> {
    ids.iter().copied().map(Key::Token).collect()
}

fn rows_of(content: u64, rows: u32) -> Vec<Key> {
    (0..rows).map(|row| Key::Media { content: Content(content), row }).collect()
}

fn cache(enabled: bool, prefix_rows: u64) -> Cache {
    Cache::new(CacheOptions { enabled, bytes: prefix_rows * 10 }, 64, 10)
}

#[test]
fn a_new_conversation_begins_with_what_the_last_one_shares() {
    let mut c = cache(true, 100);
    c.extend(text(&[1, 2, 3, 4, 5]));
    let resident = |c: &Cache, ids: &[u32]| c.find(0, &text(ids)).unwrap().rows();
    assert_eq!(resident(&c, &[1, 2, 3, 9, 5]), 3);
    assert_eq!(resident(&c, &[2, 2, 3, 4, 5]), 0, "the same length, another beginning");
    // The last row is computed always.
    assert_eq!(resident(&c, &[1, 2, 3, 4, 5]), 4);
    assert_eq!(resident(&c, &[1, 2]), 1);
    assert_eq!(resident(&c, &[1, 2, 3, 4, 5, 6, 7]), 5);
    assert_eq!(resident(&c, &[1]), 0);
    c.truncate(2);
    assert_eq!(resident(&c, &[1, 2, 3, 4, 5, 6, 7]), 2);
}

#[test]
fn pictures_of_the_same_length_are_told_apart() {
    let mut c = cache(true, 100);
    let prompt = |content| [text(&[7, 7]), rows_of(content, 4), text(&[8, 9])].concat();
    c.extend(prompt(0));
    assert_eq!(c.find(0, &prompt(0)).unwrap().rows(), 7);
    assert_eq!(c.find(0, &prompt(1)).unwrap().rows(), 2);
    // A token is no row of a picture, and rows of a picture count from its first.
    let shifted = [text(&[7, 7]), rows_of(0, 5)[1..].to_vec(), text(&[8, 9])].concat();
    assert_eq!(c.find(0, &shifted).unwrap().rows(), 2);
    assert_eq!(c.find(0, &text(&[7, 7, 0, 1, 2, 3])).unwrap().rows(), 2);
}

#[test]
fn a_later_turn_counts_from_its_own_rows() {
    let mut c = cache(true, 100);
    c.extend(text(&[1, 2, 3]));
    let next = text(&[4, 5]);
    assert_eq!(c.find(3, &next).unwrap(), Found { resident: 3, restored: 0, kept: None });
    assert_eq!(c.rows_to_keep(3), 0, "nothing is overwritten");
    let message = c.find(4, &next).unwrap_err().to_string();
    assert_eq!(message, "the KV cache holds 3 of 4 rows of the conversation");
}

fn keep(c: &mut Cache, keys: Vec<Key>) -> PrefixId {
    let place = c.prefixes.make_room(&keys, None).unwrap();
    c.prefixes.insert(keys, place)
}

#[test]
fn kept_beginnings_are_found_where_they_are_longer_by_enough() {
    let long: Vec<u32> = (0..60).collect();
    let mut c = cache(true, 128);
    let id = keep(&mut c, text(&long));
    c.extend(text(&long[..10]));
    c.extend(text(&[1000, 1001]));
    let want = |n: usize| c.find(0, &text(&long[..n])).unwrap();
    assert_eq!(want(60), Found { resident: 10, restored: 49, kept: Some(id) });
    assert_eq!(want(27), Found { resident: 10, restored: 16, kept: Some(id) });
    assert_eq!(want(26), Found { resident: 10, restored: 0, kept: None });
    // In a later turn of a conversation that the kept one begins like, and in one that it does not.
    c.truncate(10);
    assert_eq!(c.find(10, &text(&long[10..40])).unwrap().rows(), 39);
    c.truncate(9);
    c.extend(text(&[1000]));
    assert_eq!(c.find(10, &text(&long[10..40])).unwrap(), Found { resident: 10, restored: 0, kept: None });
}

#[test]
fn what_is_worth_keeping() {
    let rows: Vec<u32> = (0..40).collect();
    let mut c = cache(true, 64);
    c.extend(text(&rows));
    assert_eq!([0, 24, 25, 40].map(|from| c.rows_to_keep(from)), [40, 40, 0, 0]);
    keep(&mut c, text(&rows));
    assert_eq!(c.rows_to_keep(0), 0, "it is kept already");
    c.extend(text(&rows));
    assert_eq!(c.rows_to_keep(0), 0, "80 rows do not fit 64");
}

#[test]
fn switched_off_nothing_is_found() {
    let mut c = cache(false, 100);
    c.extend(text(&[1, 2, 3]));
    assert_eq!(c.find(0, &text(&[1, 2, 3, 4])).unwrap().rows(), 0);
    assert_eq!(c.find(3, &text(&[4])).unwrap().rows(), 3, "a conversation goes on");
    assert_eq!((c.prefixes.capacity(), c.rows_to_keep(0)), (0, 0));
}
