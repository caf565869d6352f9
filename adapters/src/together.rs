//! Several futures of one thread at a time.

use std::future::Future;
use std::pin::Pin;
use std::task::Poll;

/// A future on its way, or what it came to.
struct Running<F: Future> {
    future: Pin<Box<F>>,
    output: Option<F::Output>,
}

/// Waits for all of them; the outputs in their order.
pub async fn together<F: Future>(futures: impl IntoIterator<Item = F>) -> Vec<F::Output> {
    let mut running: Vec<Running<F>> = futures
        .into_iter()
        .map(|future| Running { future: Box::pin(future), output: None })
        .collect();
    std::future::poll_fn(|context| {
        let mut all = true;
        for one in running.iter_mut().filter(|one| one.output.is_none()) {
            match one.future.as_mut().poll(context) {
                Poll::Ready(output) => one.output = Some(output),
                Poll::Pending => all = false,
            }
        }
        if all { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    running.into_iter().map(|one| one.output.expect("all are ready")).collect()
}
