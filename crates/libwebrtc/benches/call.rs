//! What each event of a call costs, in CPU time of the thread, and what share of a core that is for
//! a whole call.
//!
//! `cargo bench -p libwebrtc --features internals` prints the shares at the end. The time is that
//! of the thread, so other work on the machine disturbs it less; waking up, which costs more than
//! most of these, is no part of it.

use std::{collections::BTreeMap, sync::Mutex, time::Duration};

use criterion::Criterion;
use libwebrtc::internals::parts::{
    DataMessage, FrameIn, IdleTick, PacketIn, PacketOut, Part, Pull, Resample,
};
use rustix::time::{ClockId, clock_gettime};

/// So many events are measured at once: enough that reading the clock does not count.
const EVENTS_AT_ONCE: usize = 100;

/// Time and events so far, by name.
static MEASURED: Mutex<BTreeMap<&str, (Duration, u64)>> = Mutex::new(BTreeMap::new());

fn thread_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec as u32)
}

fn measure(criterion: &mut Criterion, name: &'static str, mut part: impl Part) {
    criterion.bench_function(name, |bencher| {
        bencher.iter_custom(|events| {
            let mut time = Duration::ZERO;
            let mut left = events;
            while left > 0 {
                let batch = left.min(EVENTS_AT_ONCE as u64);
                part.prepare(batch as usize);
                let before = thread_time();
                part.run();
                time += thread_time() - before;
                left -= batch;
            }
            let mut measured = MEASURED.lock().expect("nobody panics with it");
            let sum = measured.entry(name).or_default();
            *sum = (sum.0 + time, sum.1 + events);
            time
        });
    });
}

fn main() {
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(3))
        .configure_from_args();
    let criterion = &mut criterion;
    measure(criterion, "frame in, 48 kHz", FrameIn::new(48_000, 0));
    measure(criterion, "frame in, 24 kHz", FrameIn::new(24_000, 0));
    measure(
        criterion,
        "frame in, 10 % loss reported",
        FrameIn::new(48_000, 10),
    );
    measure(criterion, "packet out", PacketOut::default());
    measure(criterion, "packet in", PacketIn::default());
    measure(criterion, "pull of 10 ms", Pull::new(false));
    measure(criterion, "pull, 10 % loss, 60 ms jitter", Pull::new(true));
    measure(criterion, "resample to 16 kHz", Resample::new(16_000));
    measure(criterion, "tick with nothing to do", IdleTick::default());
    measure(criterion, "data message, 100 B", DataMessage::new(100));
    measure(criterion, "data message, 15 kB", DataMessage::new(15_000));
    print_shares();
}

/// How often an event happens in a second of a call with sound in both directions; `true` marks a
/// variant that takes the place of another event.
const EVENTS_A_SECOND: [(&str, f64, bool); 11] = [
    ("frame in, 48 kHz", 100.0, true),
    ("frame in, 24 kHz", 100.0, false),
    ("frame in, 10 % loss reported", 100.0, false),
    ("packet out", 50.0, true),
    ("packet in", 50.0, true),
    ("pull of 10 ms", 100.0, true),
    ("pull, 10 % loss, 60 ms jitter", 100.0, false),
    ("resample to 16 kHz", 100.0, true),
    ("tick with nothing to do", 100.0, true),
    // Transcriptions and states; a call has fewer.
    ("data message, 100 B", 5.0, true),
    ("data message, 15 kB", 0.2, true),
];

fn print_shares() {
    let measured = MEASURED.lock().expect("nobody panics with it");
    println!(
        "\n{:30} {:>10} {:>9} {:>12}",
        "", "µs each", "a second", "% of a core"
    );
    let mut sum = 0.0;
    for (name, a_second, counts) in EVENTS_A_SECOND {
        let Some((time, events)) = measured.get(name).filter(|(_, events)| *events > 0) else {
            continue;
        };
        let each = time.as_secs_f64() / *events as f64;
        let share = each * a_second * 100.0;
        sum += if counts { share } else { 0.0 };
        println!(
            "{name:30} {:>10.2} {a_second:>9.1} {share:>11.3}{}",
            each * 1e6,
            if counts { "" } else { " *" }
        );
    }
    println!("{:30} {:>10} {:>9} {sum:>11.3}", "together", "", "");
    println!("* in place of another line, not in the sum");
}
