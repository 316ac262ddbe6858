//! The one media thread of the process: a current-thread tokio runtime for sockets, peer
//! connections and the audio clock.

use std::sync::OnceLock;

use tokio::runtime::{Builder, Handle};

/// The handle of the media runtime, which is started by the first call and lives as long as the
/// process.
pub(crate) fn handle() -> &'static Handle {
    static ENGINE: OnceLock<Handle> = OnceLock::new();
    ENGINE.get_or_init(|| {
        let (sender, receiver) = std::sync::mpsc::channel();
        std::thread::Builder::new()
            .name("rtc-media".into())
            .spawn(move || {
                let runtime = Builder::new_current_thread()
                    .enable_io()
                    .enable_time()
                    .build()
                    .expect("a current-thread runtime needs only an event queue of the system");
                let _ = sender.send(runtime.handle().clone());
                runtime.block_on(std::future::pending::<()>());
            })
            .expect("the process may start the one media thread");
        receiver
            .recv()
            .expect("the media thread sends its handle before anything else")
    })
}
