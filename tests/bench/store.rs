//! What the store of a runner takes and gives.

use super::*;

/// 16 producers that each wait for their own commit, at the store's thread.
fn producers(store: Store, first: u64, seconds: u64) -> (f64, f64, Duration) {
    let (orders, inbox) = bounded(512);
    let (lane, events) = bounded(512);
    let thread = std::thread::spawn(move || run_store(store, inbox, lane));
    let done = Arc::new((Mutex::new(0u64), Condvar::new()));
    let commits = Arc::new(AtomicU64::new(0));
    let (told, counted) = (done.clone(), commits.clone());
    let listener = std::thread::spawn(move || {
        for event in events {
            if let Event::Store(StoreEvent::Committed { upto, .. }) = event {
                counted.fetch_add(1, Ordering::Relaxed);
                *told.0.lock().expect("lock") = upto;
                told.1.notify_all();
            }
        }
    });
    let number = Arc::new(Mutex::new(0u64));
    let until = Instant::now() + Duration::from_secs(seconds);
    let at = Instant::now();
    let workers: Vec<_> = (0..16)
        .map(|_| {
            let (orders, done, number) = (orders.clone(), done.clone(), number.clone());
            std::thread::spawn(move || {
                let mut waits = Vec::new();
                while Instant::now() < until {
                    let started = Instant::now();
                    let mine = {
                        let mut number = number.lock().expect("lock");
                        *number += 1;
                        let commit =
                            Commit { number: *number, ops: vec![stored(message(first + *number))] };
                        orders.send(StoreCommand::Commit(commit)).expect("sends");
                        *number
                    };
                    let mut upto = done.0.lock().expect("lock");
                    while *upto < mine {
                        upto = done.1.wait(upto).expect("waits");
                    }
                    drop(upto);
                    waits.push(started.elapsed());
                }
                waits
            })
        })
        .collect();
    let mut waits: Vec<Duration> =
        workers.into_iter().flat_map(|worker| worker.join().expect("joins")).collect();
    let seconds = at.elapsed().as_secs_f64();
    drop(orders);
    thread.join().expect("joins");
    listener.join().expect("joins");
    let rows = waits.len() as f64;
    (rows / seconds, rows / commits.load(Ordering::Relaxed) as f64, percentile(&mut waits, 0.5))
}

pub fn enqueue(commit: Duration) {
    let folder = Folder::new("enqueue");
    let sync = {
        let mut file = std::fs::File::create(folder.0.join("raw")).expect("creates");
        let mut raw: Vec<Duration> = (0..300)
            .map(|_| {
                let at = Instant::now();
                file.write_all(&[7; 4096]).and_then(|_| file.sync_data()).expect("syncs");
                at.elapsed()
            })
            .collect();
        percentile(&mut raw, 0.5)
    };
    let open = |name: &str| Store::open(&folder.0.join(name), 8 << 30).expect("opens");
    let (rate, group, wait) = producers(open("empty.sqlite"), 0, 4);
    let limit = group / sync.as_secs_f64();
    let here = format!(
        "{rate:.0} rows/s, {group:.1} rows a commit, wait p50 {}; {:.2} × of {limit:.0} (one commit {})",
        us(wait),
        rate / limit,
        us(commit)
    );
    row("durable enqueue, 16 producers", "≥ 0.35 × (rows per commit ÷ fdatasync)", here);
    let mut store = open("full.sqlite");
    for block in 0..1000u64 {
        let ops: Vec<_> = (0..1000).map(|n| stored(message(block * 1000 + n + 1))).collect();
        store.commit_ops(&ops).expect("commits");
    }
    drop(store);
    let (full, group, wait) = producers(open("full.sqlite"), 10_000_000, 4);
    row(
        "… with 1,000,000 rows waiting",
        "≤ 1.5 × the empty queue (time a row)",
        format!(
            "{full:.0} rows/s, {group:.1} rows a commit, wait p50 {}; {:.2} ×",
            us(wait),
            rate / full
        ),
    );
}

pub fn drain() {
    let folder = Folder::new("drain");
    let measure = |rows: u64, drained: u64| {
        let mut store =
            Store::open(&folder.0.join(format!("{rows}.sqlite")), 8 << 30).expect("opens");
        let payload = json!({"to": "user", "body": "x".repeat(480)});
        for block in 0..rows / 1000 {
            let row = |n: u64| OutboxRow {
                kind: "session-message".into(),
                key: format!("k{block}-{n}"),
                occurred_at: 1,
                payload: payload.clone(),
                generation: 0,
            };
            let ops: Vec<_> = (0..1000).map(|n| StoreOp::OutboxAppend(row(n))).collect();
            store.commit_ops(&ops).expect("commits");
        }
        let (at, mut done) = (Instant::now(), 0);
        while done < drained {
            let rows = store.outbox().expect("reads");
            done += rows.len() as u64;
            store
                .commit_ops(&[StoreOp::OutboxDelete(rows.iter().map(|row| row.seq).collect())])
                .expect("commits");
        }
        done as f64 / at.elapsed().as_secs_f64()
    };
    let empty = measure(50_000, 50_000);
    row(
        "drain into a no-op sender, 64 rows at a time",
        "≥ 50,000 rows/s",
        format!("{empty:.0} rows/s"),
    );
    let full = measure(1_000_000, 100_000);
    row(
        "… with 1,000,000 rows waiting",
        "≤ 1.5 × (time a row)",
        format!("{full:.0} rows/s; {:.2} ×", empty / full),
    );
}
