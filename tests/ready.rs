//! The two bit sets.

use uring_reactor::{Interest, Ready};

const BITS: [(Ready, &str); 7] = [
    (Ready::READABLE, "READABLE"),
    (Ready::WRITABLE, "WRITABLE"),
    (Ready::PRIORITY, "PRIORITY"),
    (Ready::READ_CLOSED, "READ_CLOSED"),
    (Ready::WRITE_CLOSED, "WRITE_CLOSED"),
    (Ready::HUP, "HUP"),
    (Ready::ERROR, "ERROR"),
];

#[test]
fn the_bits_are_distinct_and_all_has_every_one() {
    let mut all = Ready::EMPTY;
    for (bit, _) in BITS {
        assert!(!bit.is_empty());
        assert!((all & bit).is_empty(), "{bit:?} overlaps another bit");
        all |= bit;
        assert!(all.contains(bit));
    }
    assert_eq!(all, Ready::ALL);
    assert!(Ready::EMPTY.is_empty() && !Ready::ALL.is_empty());
}

#[test]
fn each_question_asks_for_its_bit_alone() {
    fn asks_for(question: fn(Ready) -> bool, bit: Ready) {
        assert!(question(bit));
        assert!(question(Ready::ALL));
        assert!(!question(Ready::ALL - bit));
        assert!(!question(Ready::EMPTY));
    }
    asks_for(Ready::is_readable, Ready::READABLE);
    asks_for(Ready::is_writable, Ready::WRITABLE);
    asks_for(Ready::is_priority, Ready::PRIORITY);
    asks_for(Ready::is_read_closed, Ready::READ_CLOSED);
    asks_for(Ready::is_write_closed, Ready::WRITE_CLOSED);
    asks_for(Ready::is_hup, Ready::HUP);
    asks_for(Ready::is_error, Ready::ERROR);
}

#[test]
fn sets_can_be_joined_cut_and_subtracted() {
    let both = Ready::READABLE | Ready::HUP;
    assert_eq!(both - Ready::HUP, Ready::READABLE);
    assert_eq!(both - Ready::WRITABLE, both);
    assert_eq!(both & Ready::HUP, Ready::HUP);
    assert_eq!(both & Ready::WRITABLE, Ready::EMPTY);
    assert!(both.contains(Ready::EMPTY));
    assert!(!both.contains(Ready::READABLE | Ready::WRITABLE));
    assert!(both.intersects(Ready::HUP | Ready::WRITABLE));
    assert!(!both.intersects(Ready::WRITABLE | Ready::ERROR));
    assert!(!both.intersects(Ready::EMPTY));
    let mut changed = both;
    assert_eq!(changed, both);
    changed |= Ready::ERROR;
    assert_eq!(changed, both.union(Ready::ERROR));
    changed -= Ready::HUP;
    assert_eq!(changed, Ready::READABLE | Ready::ERROR);
    changed &= Ready::READABLE | Ready::WRITABLE;
    assert_eq!(changed, Ready::READABLE);
}

#[test]
fn debug_names_every_bit() {
    for (bit, name) in BITS {
        assert_eq!(format!("{bit:?}"), name);
        assert!(format!("{:?}", Ready::ALL).contains(name));
        assert!(
            !format!("{:?}", Ready::ALL - bit)
                .split(" | ")
                .any(|part| part == name)
        );
    }
}

#[test]
fn interests_can_be_joined() {
    let all = Interest::READABLE | Interest::WRITABLE | Interest::PRIORITY;
    assert!(all.is_readable() && all.is_writable() && all.is_priority());
    assert!(!(Interest::READABLE | Interest::WRITABLE).is_priority());
    assert_ne!(Interest::READABLE, Interest::WRITABLE);
    let mut joined = Interest::READABLE;
    assert!(joined.contains(Interest::READABLE) && !joined.contains(all));
    joined |= Interest::WRITABLE;
    assert_eq!(joined.union(Interest::PRIORITY), all);
    assert!(all.contains(joined));
    for name in ["READABLE", "WRITABLE", "PRIORITY"] {
        assert!(format!("{all:?}").contains(name));
    }
}
